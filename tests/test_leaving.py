"""A signal while strategies act after a task, which may take as long as a task."""

import os
import re
import signal

import pytest
from safetensors.torch import load_file

import cl_mofo
from cl_mofo import loop
from cl_mofo.errors import StoppedError

RECIPE = {
    "strategy": "replay+ewc+mofo",
    "tasks": {"only": ["FOMC", "Py150"], "epochs": 1, "prompt_tokens": 64, "answer_tokens": 8},
    "data": {"train_limit": 16, "test_limit": 2},
    "optimizer": {"batch_size": 8},
    "evaluation": {"initial": False, "losses": False},
    "checkpoint": {"every_steps": 1, "keep": 1},
}


def test_it_is_left_in_between_and_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = cl_mofo.run(RECIPE, out=tmp_path / "whole")
    passes, computed = [], loop.replace_gradients

    def signalled(*args):
        passes.append(args)
        if len(passes) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return computed(*args)

    monkeypatch.setattr(loop, "replace_gradients", signalled)
    left = "after the last step on FOMC, before its end; checkpoint 00000002-00 is written"
    with pytest.raises(StoppedError, match=left):
        cl_mofo.run(RECIPE, out=tmp_path / "run")
    assert len(passes) == 3
    monkeypatch.undo()
    again = cl_mofo.resume(tmp_path / "run")
    assert again["scores"] == whole["scores"]
    saved = re.findall(r"INFO checkpoint (\S+)$", (tmp_path / "run" / "run.log").read_text(), re.M)
    assert len(saved) == len(set(saved))  # none in another's place, which a kill may leave empty
    ours, theirs = (load_file(tmp_path / n / "model/model.safetensors") for n in ("run", "whole"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
