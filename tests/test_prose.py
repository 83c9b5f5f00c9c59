"""The loss on prose that no task is about, and which cells of the matrix are measured."""

import json
import math

import pytest
import torch

import cl_mofo
from cl_mofo.config import ModelConfig
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.evaluation.prose import prose_loss, prose_tokens
from cl_mofo.mappings import merge
from cl_mofo.model import load_model
from cl_mofo.progress import cells_tested
from cl_mofo.report import load_results
from tests.small_run import SMALL, goes_on, stopped_run

TEXT = "The bridge was closed in March. Nobody had asked why, and 12 boats lay below it.\n" * 9


@pytest.fixture(scope="module")
def language_model():
    return load_model(ModelConfig(path="tiny", device="cpu"))


@pytest.mark.parametrize("window", [2, 7, 33, 512])
def test_the_loss_is_that_of_each_token_given_those_before_it_in_its_window(language_model, window):
    tokens = prose_tokens(language_model, TEXT, 100)
    assert len(tokens) == 100
    losses = []
    for start in range(0, 100, window):
        part = tokens[start : start + window]
        for i in range(1, len(part)):
            with torch.no_grad():
                logits = language_model.module(torch.tensor([part[:i]])).logits[0, -1]
            losses.append(-torch.log_softmax(logits, 0)[part[i]].item())
    assert prose_loss(language_model, tokens, window) == pytest.approx(
        math.fsum(losses) / len(losses), rel=1e-5
    )


def test_a_text_of_one_token_has_no_loss(language_model):
    with pytest.raises(UserError, match=r"data\.prose.* 1 tokens"):
        prose_tokens(language_model, "a", 8)


def test_a_broken_model_is_told(language_model):
    head = language_model.module.get_output_embeddings().weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.fill_(math.nan)
    try:
        with pytest.raises(TrainingError, match="loss on prose is nan"):
            prose_loss(language_model, [1, 2, 3])
    finally:
        with torch.no_grad():
            head.copy_(kept)


def with_prose(path, **keys):
    return merge(merge(SMALL, {"data": {"prose": str(path)}, "save_model": False}), keys)


def test_a_run_measures_prose_before_training_and_after_each_task(tmp_path, language_model):
    path = tmp_path / "prose.txt"
    path.write_text(TEXT, "utf-8")
    results = cl_mofo.run(with_prose(path), out=tmp_path / "run")
    before, *after = results["prose_losses"]
    assert len(after) == 2
    assert before == prose_loss(language_model, prose_tokens(language_model, TEXT, 8192))
    assert len({before, *after}) == 3
    assert json.loads((tmp_path / "run/manifest.json").read_text("utf-8"))["data"]["prose"]
    plain = cl_mofo.run(merge(SMALL, {"save_model": False}), out=tmp_path / "plain")
    assert plain["prose_losses"] is None
    assert plain["scores"] == results["scores"]
    assert plain["losses"] == results["losses"]


def test_a_run_on_other_prose_is_another_run(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text(TEXT, "utf-8")
    recipe = with_prose(path)
    stopped_run(recipe, tmp_path / "run")
    path.write_text(TEXT + "More.", "utf-8")
    with pytest.raises(UserError, match="the data file prose has changed"):
        cl_mofo.run(recipe, out=tmp_path / "run", resume=True)


def test_a_stopped_run_goes_on_to_the_same_losses(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text(TEXT, "utf-8")
    recipe = with_prose(path)
    cl_mofo.run(recipe, out=tmp_path / "whole")
    goes_on(stopped_run(recipe, tmp_path / "stopped"), tmp_path / "whole")
    assert (
        len(json.loads((tmp_path / "stopped/results.json").read_text("utf-8"))["prose_losses"]) == 3
    )


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), (b"\xff\xfe", "not UTF-8"), (b"", "0 tokens")]
)
def test_prose_that_cannot_be_read_is_refused(tmp_path, content, said):
    path = tmp_path / "prose.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"data\.prose: .*{said}"):
        cl_mofo.run(with_prose(path), out=tmp_path / "run")


@pytest.mark.parametrize("which", ["seen", "all", "ends"])
def test_the_cells_that_are_tested(which):
    table = {
        "seen": [[0], [0, 1], [0, 1, 2]],
        "all": [[0, 1, 2]] * 3,
        "ends": [[0], [1], [0, 1, 2]],
    }
    assert [[*cells_tested(t, 3, which)] for t in (1, 2, 3)] == table[which]


def test_the_ends_alone_give_the_same_last_figures(tmp_path):
    keys = {"tasks": {"only": ["FOMC", "Py150", "NumGLUE-ds"]}, "save_model": False}
    seen = cl_mofo.run(merge(SMALL, keys), out=tmp_path / "seen")
    ends = cl_mofo.run(
        merge(merge(SMALL, keys), {"evaluation": {"tasks": "ends"}}), out=tmp_path / "ends"
    )
    for t, i in [(0, 0), (1, 1), (2, 0), (2, 1), (2, 2)]:
        assert ends["scores"][t][i] == seen["scores"][t][i] is not None
    assert ends["scores"][1][0] is None
    assert ends["op"] == [seen["op"][0], None, seen["op"][2]]
    assert ends["bwt"] == [None, None, seen["bwt"][2]]
    assert ends["learned"] == seen["learned"]
    assert ends["forgetting"] is None
    assert ends["finished"]
    run = load_results(tmp_path / "ends")
    assert (list(run.op), list(run.bwt)) == (ends["op"], ends["bwt"])
    assert not (tmp_path / "ends/predictions/02-Py150/FOMC.jsonl").exists()
