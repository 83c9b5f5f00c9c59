"""Whatever fails as a run writes, rests or goes on: no good checkpoint is lost, no result wrong."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import cl_mofo
from cl_mofo import mini
from cl_mofo.errors import NotWrittenError, UserError
from cl_mofo.evaluation.generate import Answer
from cl_mofo.evaluation.journal import Journal
from cl_mofo.mappings import merge
from tests.small_run import SMALL, STOP, At, StoppedHereError, goes_on, good, names, stop
from tests.soak import differences


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two tasks as a user's files, and the recipe of a run over them."""
    folder = tmp_path_factory.mktemp("data")
    for task in ("FOMC", "Py150"):
        (folder / task).mkdir()
        for split, rows in mini.records()[task].items():
            (folder / task / f"{split}.json").write_text(json.dumps(rows[:8]))
    return folder


@pytest.fixture(scope="module")
def recipe(data):
    return merge(SMALL, {"data": {"suite": "trace", "path": str(data)}})


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    cl_mofo.run(recipe, out=folder)
    return folder


@pytest.fixture(scope="module")
def _stopped(recipe, whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(StoppedHereError):
        cl_mofo.run(recipe, out=folder, observer=At(STOP, stop))
    assert names(folder) == ["00000002-01", "00000002-00", "00000001-00"]
    return folder


@pytest.fixture
def stopped(_stopped, tmp_path):
    """The folder of a run that was stopped in the middle, to be done with what one likes."""
    return Path(shutil.copytree(_stopped, tmp_path / "run"))


def test_a_run_that_goes_on_ends_as_if_nothing_had_been(stopped, whole):
    observer = goes_on(stopped, whole)
    assert observer.resumed_from == "checkpoint 00000002-01"
    assert observer.warnings == []


# What cannot be written.


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let every write beyond a file's first so many bytes fail, by whatever library it is made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Limited(At):
    """Lets writes fail from a run's start on."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.stack = size, contextlib.ExitStack()

    def started(self, *_):
        self.stack.enter_context(files_end_at(self.size))


@pytest.mark.parametrize("size", [0, 700, 2000, 20_000, 60_000, 1_000_000, 4_060_000])
def test_a_write_that_fails_anywhere_loses_no_checkpoint(stopped, whole, size):
    before = good(stopped)
    observer = Limited(size)
    with observer.stack, pytest.raises(NotWrittenError) as caught:
        cl_mofo.resume(stopped, observer=observer)
    assert "cannot be written: File too large" in str(caught.value)
    assert f"cl-mofo resume {stopped}" in str(caught.value)
    assert good(stopped) == before
    assert not list(stopped.rglob("*.partial"))
    assert observer.warnings == [] or all("no checkpoint" in told for told in observer.warnings)
    assert len(observer.warnings) == (3 if size > 10_000 else 0)
    if size in (2000, 4_060_000):
        goes_on(stopped, whole)


def test_a_run_without_checkpoints_can_end(stopped, whole):
    observer = Limited(5_000_000)
    with observer.stack:
        cl_mofo.resume(stopped, observer=observer)
    assert differences(whole, stopped) == []
    assert len(observer.warnings) == 3
    for told in observer.warnings:
        assert told.startswith("no checkpoint could be written: ")
        assert " MB; " in told
        assert told.endswith(" are free")


@pytest.fixture
def small_disk():
    """An empty file system with little room."""
    place = Path(tempfile.mkdtemp(prefix="small-disk-"))
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], capture_output=True, text=True
    )
    if made.returncode:
        place.rmdir()
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)
    place.rmdir()


def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on_later(
    recipe, whole, small_disk
):
    ballast, folder = small_disk / "ballast", small_disk / "run"

    def fill() -> None:
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**20))
                file.flush()
        with ballast.open("r+b") as file:
            file.truncate(ballast.stat().st_size - 2**19)

    observer = At(STOP, fill)
    with pytest.raises(NotWrittenError, match=r"cannot be written: No space left .*cl-mofo resume"):
        cl_mofo.run(recipe, out=folder, observer=observer)
    assert good(folder) == ["00000002-01", "00000002-00", "00000001-00"]
    assert not list(folder.rglob("*.partial"))
    assert len(observer.warnings) == 3
    for told in observer.warnings:
        assert "No space left" in told
        assert "MB; 0." in told
    ballast.unlink()
    goes_on(folder, whole)


def test_what_cannot_have_room_is_not_begun(recipe, small_disk):
    (small_disk / "ballast").write_bytes(bytes(20 * 2**20))
    with pytest.raises(UserError, match=r"needs at least 5\d\.\d MB .*46\.\d MB are free.*keep=3"):
        cl_mofo.run(recipe, out=small_disk / "run")
    assert not (small_disk / "run" / "checkpoints").exists()


# Folders that cannot be written, and those of another process.


@contextlib.contextmanager
def nobody(*owned: Path) -> Iterator[None]:
    """Be a user whom permissions bind, the owner of some files."""
    if os.getuid() != 0:
        yield
        return
    for top in owned:
        for path in (top, *top.rglob("*")):
            os.chown(path, 65534, 65534)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def open_to_all():
    """A folder that any user can reach; pytest's own are the user's alone."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    place.chmod(0o755)
    yield place
    for path in (place, *place.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(place)


def test_a_folder_that_cannot_be_written_is_refused(stopped, recipe, open_to_all):
    folder = Path(shutil.copytree(stopped, open_to_all / "run"))
    # The recipe's data lie where only their owner can read them; what is refused is the folder.
    embedded = merge(recipe, {"data": {"suite": "trace-mini", "path": None}})
    with nobody(open_to_all):
        for path in (*folder.rglob("*"), folder, open_to_all):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with pytest.raises(UserError, match="no folder that can be written into"):
            cl_mofo.run(embedded, out=open_to_all / "new")
        with pytest.raises(UserError, match=r"run: cannot be used: Permission denied"):
            cl_mofo.run(embedded, out=folder, resume=True)
        with pytest.raises(UserError, match="cannot be emptied"):
            cl_mofo.run(embedded, out=folder, overwrite=True)
    assert differences(stopped, folder) == []


def test_a_folder_that_becomes_read_only_keeps_what_it_has(recipe, open_to_all):
    folder = open_to_all / "run"
    embedded = merge(recipe, {"data": {"suite": "trace-mini", "path": None, "train_limit": 8}})

    def close() -> None:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)

    observer = At(STOP, close)
    with (
        nobody(open_to_all),
        pytest.raises(NotWrittenError, match="cannot be written: Permission denied"),
    ):
        cl_mofo.run(embedded, out=folder, observer=observer)
    assert all("no checkpoint could be written: Permission" in w for w in observer.warnings)
    assert good(folder) == ["00000002-01", "00000002-00", "00000001-00"]


def test_a_run_of_another_process_is_left_to_it_and_free_when_it_is_killed(stopped, recipe, whole):
    script = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    arguments = [sys.executable, "-c", script, str(stopped / "run.log")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for way in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match="another process is running this run"):
                cl_mofo.run(recipe, out=stopped, **way)
        other.kill()
    goes_on(stopped, whole)


def test_two_that_go_on_at_once_do_not_both(stopped, monkeypatch):
    # Both have found the folder free; the other has come first.
    monkeypatch.setattr("cl_mofo.folder.RunFolder.in_use", staticmethod(lambda path: False))
    with (stopped / "run.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is running this run"):
            cl_mofo.resume(stopped)


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


@pytest.mark.parametrize("seed", range(4))
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


@pytest.mark.parametrize("content", [b"", b'{"sha256":"0","content":{}}', b"\xff\0{"])
def test_of_damaged_progress_only_test_sets_are_done_again(stopped, whole, content):
    (stopped / "checkpoints" / "progress.json").write_bytes(content)
    (warning,) = goes_on(stopped, whole).warnings
    assert "progress.json is" in warning
    assert "done again" in warning


@pytest.mark.parametrize("shift", [-(10**9), 10**9])
def test_no_clock_decides_which_checkpoint_is_the_newest(stopped, whole, monkeypatch, shift):
    now = time.time()
    for age, name in enumerate(names(stopped)):  # the newest looks oldest
        os.utime(stopped / "checkpoints" / name, (now - 1000 * age, now - 1000 * (3 - age)))
    monkeypatch.setattr(time, "time", lambda: now + shift)
    observer = goes_on(stopped, whole)
    assert observer.resumed_from == "checkpoint 00000002-01"
    assert observer.warnings == []


# What a run is made of has changed.


def test_changed_data_are_refused(stopped, data, tmp_path):
    other = Path(shutil.copytree(data, tmp_path / "data"))
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
def test_another_run_is_refused(stopped, recipe, changes, named):
    before = (stopped / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match="would not be the run that was begun") as caught:
        cl_mofo.run(merge(recipe, changes), out=stopped, resume=True)
    assert named in str(caught.value)
    assert (stopped / "recipe.yaml").read_bytes() == before
    assert len(good(stopped)) == 3


def test_a_changed_recipe_file_is_refused(stopped):
    kept = yaml.safe_load((stopped / "recipe.yaml").read_text())
    kept["optimizer"]["batch_size"] = 8
    (stopped / "recipe.yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(UserError, match=r"recipe key optimizer\.batch_size was 4 and is 8"):
        cl_mofo.resume(stopped)


def test_a_changed_strategy_file_is_refused(recipe, tmp_path):
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
    mine = merge(recipe, {"strategy": "still+mofo", "imports": [str(file)]})
    with pytest.raises(StoppedHereError):
        cl_mofo.run(mine, out=tmp_path / "run", observer=At(1, stop))
    file.write_text(text.replace("HALF", "0.25"))
    with pytest.raises(UserError, match=r"imported file still\.py has changed"):
        cl_mofo.resume(tmp_path / "run", imports=[file])


# Folders that hold a run.


def test_a_folder_that_holds_a_run_is_not_run_into(stopped, recipe):
    with pytest.raises(UserError, match=r"holds a run.*--resume.*--overwrite"):
        cl_mofo.run(recipe, out=stopped)
    with pytest.raises(UserError, match="give one of them"):
        cl_mofo.run(recipe, out=stopped, resume=True, overwrite=True)


def test_overwrite_begins_anew(stopped, recipe, whole):
    (stopped / "predictions" / "00-initial" / "Old.jsonl").write_text("")
    observer = At()
    cl_mofo.run(recipe, out=stopped, observer=observer, overwrite=True)
    assert observer.resumed_from == ""
    assert differences(whole, stopped) == []


def test_a_folder_of_something_else_is_neither_gone_on_with_nor_emptied(recipe, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    for way in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="holds no run"):
            cl_mofo.run(recipe, out=tmp_path, **way)
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


def test_a_finished_run_stays_as_it_is(recipe, whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    observer = At()
    again = cl_mofo.run(recipe, out=folder, resume=True, observer=observer)
    assert again["finished"]
    (warning,) = observer.warnings
    assert "is finished" in warning
    assert differences(whole, folder) == []
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("keep", [1, 2])
def test_so_many_checkpoints_are_kept(recipe, tmp_path, keep):
    few = merge(recipe, {"checkpoint": {"keep": keep}, "evaluation": {"initial": False}})
    with pytest.raises(StoppedHereError):
        cl_mofo.run(few, out=tmp_path / "run", observer=At(STOP, stop))
    assert good(tmp_path / "run") == names(tmp_path / "run")
    assert names(tmp_path / "run") == ["00000002-01", "00000002-00"][:keep]
