"""What --resume and --overwrite take for a run, where no checkpoint says whose it is."""

import json
import os
import shutil

import pytest

import cl_mofo
from cl_mofo.errors import UserError
from cl_mofo.mappings import merge
from tests.small_run import At
from tests.soak import differences


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_the_users_folder_with_a_recipe_of_that_name_is_no_run(tmp_path, small_recipe, way):
    mine = {"recipe.yaml": "seed: 1\n", "thesis.tex": "all of it", "film.partial": "half of it"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"holds no run: there is no run\.log"):
        cl_mofo.run(small_recipe, out=tmp_path, **{way: True})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == mine


def test_what_was_killed_while_it_replaced_a_run_begins_by_the_same_call(
    tmp_path, small_recipe, whole
):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.log").write_text("")
    cl_mofo.run(small_recipe, out=folder, overwrite=True)
    assert differences(whole, folder) == []


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_is_written_through_a_log_that_is_no_file(stopped, tmp_path, kind):
    log, other = stopped / "run.log", tmp_path / "other"
    other.write_text("")
    log.unlink()
    log.symlink_to(other) if kind == "link" else os.mkfifo(log)
    with pytest.raises(UserError, match=r"run\.log: is no file of the run's own"):
        cl_mofo.resume(stopped)
    assert other.read_text() == ""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 43}, "recipe key seed was 42 and is 43"),
        ({}, "the data file .*FOMC.* has changed"),
    ],
)
def test_without_checkpoints_another_run_is_refused_too(stopped, small_recipe, changes, named):
    shutil.rmtree(stopped / "checkpoints")
    if not changes:
        manifest = stopped / "manifest.json"
        record = json.loads(manifest.read_text())
        record["data"] = dict.fromkeys(record["data"], "of other data")
        manifest.write_text(json.dumps(record))
    kept = (stopped / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=named):
        cl_mofo.run(merge(small_recipe, changes), out=stopped, resume=True)
    assert (stopped / "recipe.yaml").read_bytes() == kept


def test_without_checkpoints_the_same_run_begins_anew(stopped, whole):
    shutil.rmtree(stopped / "checkpoints")
    observer = At()
    cl_mofo.resume(stopped, observer=observer)
    assert "there is no checkpoint" in observer.resumed_from
    assert observer.warnings == []
    assert differences(whole, stopped) == []
