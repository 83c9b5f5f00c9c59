"""What cannot be written loses no good checkpoint, and the run says what is wrong or goes on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import cl_mofo
from cl_mofo.errors import NotWrittenError, UserError
from cl_mofo.mappings import merge
from tests.locks import held
from tests.small_run import STOP, At, goes_on, good
from tests.soak import differences
from tests.states import files_end_at


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
    small_recipe, whole, small_disk
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
        cl_mofo.run(small_recipe, out=folder, observer=observer)
    assert good(folder) == ["00000002-01", "00000002-00", "00000001-00"]
    assert not list(folder.rglob("*.partial"))
    assert len(observer.warnings) == 3
    for told in observer.warnings:
        assert "No space left" in told
        assert "MB; 0." in told
    ballast.unlink()
    goes_on(folder, whole)


def test_what_cannot_have_room_is_not_begun(small_recipe, small_disk):
    (small_disk / "ballast").write_bytes(bytes(20 * 2**20))
    with pytest.raises(UserError, match=r"needs at least 5\d\.\d MB .*46\.\d MB are free.*keep=3"):
        cl_mofo.run(small_recipe, out=small_disk / "run")
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


def test_a_folder_that_cannot_be_written_is_refused(stopped, small_recipe, open_to_all):
    folder = Path(shutil.copytree(stopped, open_to_all / "run"))
    # The recipe's data lie where only their owner can read them; what is refused is the folder.
    embedded = merge(small_recipe, {"data": {"suite": "trace-mini", "path": None}})
    with nobody(open_to_all):
        for path in (*folder.rglob("*"), folder, open_to_all):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with pytest.raises(UserError, match="no folder that can be written into"):
            cl_mofo.run(embedded, out=open_to_all / "new")
        for way in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match="run: cannot be used: Permission denied"):
                cl_mofo.run(embedded, out=folder, **way)
    assert differences(stopped, folder) == []


def test_a_folder_that_becomes_read_only_keeps_what_it_has(small_recipe, open_to_all):
    folder = open_to_all / "run"
    embedded = merge(
        small_recipe, {"data": {"suite": "trace-mini", "path": None, "train_limit": 8}}
    )

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


def test_a_run_of_another_process_is_left_to_it_until_it_is_killed(stopped, small_recipe, whole):
    with held(stopped / "run.log") as other:
        for way in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match="another process is running this run"):
                cl_mofo.run(small_recipe, out=stopped, **way)
        other.kill()
    goes_on(stopped, whole)


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_of_two_that_take_a_folder_at_once_one_does(stopped, small_recipe, monkeypatch, way):
    # Both have found the folder free; the other has come first.
    monkeypatch.setattr("cl_mofo.folder.RunFolder.in_use", staticmethod(lambda path: False))
    files = sorted(stopped.rglob("*"))
    with (stopped / "run.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is running this run"):
            cl_mofo.run(small_recipe, out=stopped, **{way: True})
    assert sorted(stopped.rglob("*")) == files
