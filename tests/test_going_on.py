"""What lies in a run's folder is damaged, or what the run is made of has changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import yaml

import cl_mofo
from cl_mofo.errors import UserError
from cl_mofo.evaluation.answers import Answer
from cl_mofo.evaluation.journal import Journal
from cl_mofo.identity import compare, identity
from cl_mofo.mappings import merge
from cl_mofo.resolve import resolve
from cl_mofo.sequence import TaskSequence
from tests.small_run import STOP, At, StoppedHereError, goes_on, good, names, stop
from tests.soak import differences


def test_a_run_that_goes_on_ends_as_if_nothing_had_been(stopped, whole):
    observer = goes_on(stopped, whole)
    assert observer.resumed_from == "checkpoint 00000002-01"
    assert observer.warnings == []


def test_the_model_is_on_the_disk_before_the_checkpoints_go(stopped, whole, monkeypatch):
    flushed: dict[Path, bool] = {}
    fsync = os.fsync

    def noted(descriptor):
        flushed[Path(os.readlink(f"/proc/self/fd/{descriptor}"))] = bool(names(stopped))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    goes_on(stopped, whole)
    model = stopped / "model"
    assert all(flushed[path] for path in (stopped, model, *model.iterdir()))


# What lies in the folder and is not as it was written.


def files_of(folder: Path, name: str) -> list[Path]:
    return sorted((folder / "checkpoints" / name).iterdir())


def damage(file: Path, rng: random.Random) -> None:
    """Flip a bit, cut the file off, remove it, or lengthen it."""
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    match rng.randrange(6):
        case 0:
            file.write_bytes(content[:place])
        case 1:
            file.unlink()
        case 2:
            file.write_bytes(bytes(content) + b"\0")
        case _:
            content[place] ^= 1 << rng.randrange(8)
            file.write_bytes(content)


@pytest.mark.parametrize("seed", [0, 3])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(stopped, whole, seed):
    files = files_of(stopped, "00000002-01")
    assert [f.suffix for f in files] == [".json", ".json", ".parquet", ".safetensors"]
    damage(files[seed], random.Random(seed))
    observer = goes_on(stopped, whole)
    (warning,) = observer.warnings
    assert warning.startswith("checkpoint 00000002-01 is damaged: ")
    assert warning.endswith("The one before it is taken")
    assert observer.resumed_from == "checkpoint 00000002-00"


def test_without_a_good_checkpoint_a_run_begins_anew(stopped, whole):
    for name in names(stopped):
        damage(files_of(stopped, name)[0], random.Random(name))
    observer = goes_on(stopped, whole)
    assert len(observer.warnings) == 3
    assert observer.resumed_from == "the beginning: there is no checkpoint"


def test_answers_of_nobody_knows_which_run_do_not_count(stopped, whole):
    for name in names(stopped):
        files_of(stopped, name)[0].unlink()
    (stopped / "checkpoints" / "progress.json").unlink()
    wrong = Answer("wrong", finished=True, tokens=1)
    Journal(stopped / "checkpoints", "00-initial-FOMC", 0).keep({0: wrong})
    goes_on(stopped, whole)


def test_of_damaged_progress_only_test_sets_are_done_again(stopped, whole):
    file = stopped / "checkpoints" / "progress.json"
    file.write_bytes(file.read_bytes().replace(b'"learned":1', b'"learned":2'))
    (warning,) = goes_on(stopped, whole).warnings
    assert "progress.json is" in warning
    assert "done again" in warning


def test_no_clock_decides_which_checkpoint_is_the_newest(stopped, whole, monkeypatch):
    now = time.time()
    for age, name in enumerate(names(stopped)):  # the newest looks oldest
        os.utime(stopped / "checkpoints" / name, (now - 1000 * age, now - 1000 * (3 - age)))
    monkeypatch.setattr(time, "time", lambda: now - 10**9)
    observer = goes_on(stopped, whole)
    assert observer.resumed_from == "checkpoint 00000002-01"
    assert observer.warnings == []


def test_answers_are_kept_until_what_they_showed_is(small_recipe, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(
        TaskSequence, "_keep_progress", lambda self: self.progress.learned and stop()
    )
    with pytest.raises(StoppedHereError):
        cl_mofo.run(small_recipe, out=tmp_path / "run")
    monkeypatch.undo()
    asked: list[str] = []
    keep = Journal.keep

    def counted(journal, answers):
        asked.append(journal.name)
        keep(journal, answers)

    monkeypatch.setattr(Journal, "keep", counted)
    goes_on(tmp_path / "run", whole)
    assert {*asked} == {"02-Py150-FOMC", "02-Py150-Py150"}


# What a run is made of has changed.


def test_changed_data_are_refused(stopped, small_data, tmp_path):
    other = Path(shutil.copytree(small_data, tmp_path / "data"))
    rows = json.loads((other / "Py150" / "train.json").read_text())
    rows[5]["answer"] += "."
    (other / "Py150" / "train.json").write_text(json.dumps(rows))
    before = good(stopped)
    with pytest.raises(UserError, match=r"data file Py150/train\.json has changed") as caught:
        cl_mofo.resume(stopped, assignments=[f"data.path={other}"])
    assert "FOMC" not in str(caught.value)
    assert good(stopped) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": {"lr": 1e-3}}, "optimizer.lr was 0.0005 and is 0.001"),
        ({"seed": 43}, "seed was 42 and is 43"),
        ({"strategy": "hft"}, "strategy was 'mofo' and is 'hft'"),
        ({"mofo": {"update_fraction": 0.5}}, "mofo.update_fraction"),
        ({"tasks": {"only": ["Py150", "FOMC"]}}, "tasks.only"),
    ],
)
def test_another_run_is_refused(stopped, small_recipe, changes, named):
    before = (stopped / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match="would not be the run that was begun") as caught:
        cl_mofo.run(merge(small_recipe, changes), out=stopped, resume=True)
    assert named in str(caught.value)
    assert (stopped / "recipe.yaml").read_bytes() == before
    assert len(good(stopped)) == 3


@pytest.mark.parametrize(
    ("key", "other", "free", "not_free"),
    [
        ("training.micro_batch_size", "training.loss", "tokens", "micro_batches"),
        ("evaluation.batch_size", "evaluation.decoding", "greedy", "sample"),
    ],
)
def test_the_size_of_a_batch_is_free_unless_it_says_what_is_computed(key, other, free, not_free):
    def made_of(value, size):
        recipe = {"training.loss": "tokens", "evaluation.decoding": "greedy", other: value}
        return {
            "recipe": {**recipe, key: size},
            "data": {},
            "model": "",
            "code": {},
            "versions": {},
        }

    (remark,) = compare(made_of(free, 4), made_of(free, 8))
    assert remark.startswith(f"{key} was 4 and is 8")
    with pytest.raises(UserError, match=f"recipe key {key} was 4 and is 8"):
        compare(made_of(not_free, 4), made_of(not_free, 8))


def test_a_key_that_came_later_had_its_default_before():
    now = identity(resolve({}), {}, {"sha256": ""})
    then = {**now, "recipe": {k: v for k, v in now["recipe"].items() if k != "data.share_seed"}}
    assert now["recipe"]["data.share_seed"] == 0
    assert compare(then, now) == []
    with pytest.raises(UserError, match=r"recipe key data\.share_seed was 0 and is 1"):
        compare(then, {**now, "recipe": {**now["recipe"], "data.share_seed": 1}})


def test_a_changed_recipe_file_is_refused(stopped):
    kept = yaml.safe_load((stopped / "recipe.yaml").read_text())
    kept["optimizer"]["batch_size"] = 8
    (stopped / "recipe.yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(UserError, match=r"recipe key optimizer\.batch_size was 4 and is 8"):
        cl_mofo.resume(stopped)


def test_a_changed_strategy_file_is_refused(small_recipe, tmp_path):
    file = tmp_path / "still.py"
    text = (
        "from cl_mofo.strategy import Strategy\n"
        "class Still(Strategy):\n"
        "    name, phases = 'still', frozenset({'penalty'})\n"
        "    def on_gradients(self, loop):\n"
        "        for gradient in loop.gradients().values():\n"
        "            gradient.mul_(HALF)\n"
    )
    file.write_text(text.replace("HALF", "0.5"))
    mine = merge(small_recipe, {"strategy": "still+mofo", "imports": [str(file)]})
    with pytest.raises(StoppedHereError):
        cl_mofo.run(mine, out=tmp_path / "run", observer=At(1, stop))
    file.write_text(text.replace("HALF", "0.25"))
    with pytest.raises(UserError, match=r"imported file still\.py has changed"):
        cl_mofo.resume(tmp_path / "run", imports=[file])


# Folders that hold a run.


def test_a_folder_that_holds_a_run_is_not_run_into(stopped, small_recipe):
    with pytest.raises(UserError, match=r"holds a run.*--resume.*--overwrite"):
        cl_mofo.run(small_recipe, out=stopped)
    with pytest.raises(UserError, match="give one of them"):
        cl_mofo.run(small_recipe, out=stopped, resume=True, overwrite=True)


def test_overwrite_begins_anew(stopped, small_recipe, whole):
    (stopped / "predictions" / "00-initial" / "Old.jsonl").write_text("")
    observer = At()
    cl_mofo.run(small_recipe, out=stopped, observer=observer, overwrite=True)
    assert observer.resumed_from == ""
    assert differences(whole, stopped) == []


def test_a_folder_of_something_else_is_neither_gone_on_with_nor_emptied(small_recipe, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    for way in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="holds no run"):
            cl_mofo.run(small_recipe, out=tmp_path, **way)
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


def test_a_finished_run_stays_as_it_is(small_recipe, whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "checkpoints" / "00000004-02").mkdir(parents=True)  # killed while it removed them
    observer = At()
    again = cl_mofo.run(small_recipe, out=folder, resume=True, observer=observer)
    assert again["finished"]
    (warning,) = observer.warnings
    assert "is finished" in warning
    assert differences(whole, folder) == []
    assert not (folder / "checkpoints").exists()


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(small_recipe, whole):
    with pytest.raises(UserError, match="finished run of another recipe: seed was 42 and is 43"):
        cl_mofo.run(merge(small_recipe, {"seed": 43}), out=whole, resume=True)
    speed = {"training": {"micro_batch_size": 2}, "mofo": {"update_fraction": 0.5}}
    with pytest.raises(UserError, match=r"recipe: mofo\.update_fraction was 0\.1 and is 0\.5\. "):
        cl_mofo.run(merge(small_recipe, speed), out=whole, resume=True)
    assert cl_mofo.resume(whole, assignments=["training.micro_batch_size=2"])["finished"]


@pytest.mark.parametrize("keep", [1, 2])
def test_so_many_checkpoints_are_kept(small_recipe, tmp_path, keep):
    few = merge(small_recipe, {"checkpoint": {"keep": keep}, "evaluation": {"initial": False}})
    with pytest.raises(StoppedHereError):
        cl_mofo.run(few, out=tmp_path / "run", observer=At(STOP, stop))
    assert good(tmp_path / "run") == names(tmp_path / "run")
    assert names(tmp_path / "run") == ["00000002-01", "00000002-00"][:keep]
