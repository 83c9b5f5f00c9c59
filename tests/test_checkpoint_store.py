"""The store of checkpoints: written whole or not at all, damage recognised, the newest few kept."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_mofo.checkpoint.store import Checkpoint, Store
from cl_mofo.engine.ranks import Ranks
from cl_mofo.errors import NotSavedError
from cl_mofo.files import DamagedError
from tests.states import files_end_at, folder

few = settings(max_examples=60, deadline=None)
some = settings(max_examples=150, deadline=None)


def save(run: Path, steps: int, learned: int = 0, keep: int = 2) -> str:
    state = {"weights": torch.full((50,), float(steps)), "steps": steps}
    content = {"steps": steps}
    files = {"steps.parquet": b"row %d" % steps}
    return Store(run, Ranks(), keep).save(steps, learned, state, {}, {"is": 1}, content, files)


def read(run: Path) -> list[Checkpoint | DamagedError]:
    return list(Store(run, Ranks(), keep=1).read())


def good(run: Path) -> list[str]:
    return [each.name for each in read(run) if isinstance(each, Checkpoint)]


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    assert save(tmp_path, 3, 1) == "00000003-01"
    (found,) = read(tmp_path)
    assert isinstance(found, Checkpoint)
    assert (found.name, found.ranks) == ("00000003-01", 1)
    assert (found.identity, found.content) == ({"is": 1}, {"steps": 3})
    assert found.state(0, {})["weights"].tolist() == [3.0] * 50
    assert (found.folder / "steps.parquet").read_bytes() == b"row 3"
    assert Store(tmp_path, Ranks(), keep=1).newest() == "00000003-01"


@few
@given(st.lists(st.integers(1, 120), min_size=1, max_size=8), st.integers(1, 4))
def test_the_newest_few_are_kept_whatever_the_order(steps, keep):
    """A save goes on from what is older than it; what is newer was left behind as damaged."""
    expected: list[int] = []
    with folder() as run:
        for step in steps:
            save(run, step, keep=keep)
            expected = [step, *(other for other in expected if other < step)][:keep]
            assert good(run) == [f"{each:08d}-00" for each in expected]
            assert len(list((run / "checkpoints").iterdir())) == len(expected)


def test_order_is_by_number_and_not_by_text(tmp_path):
    for steps, learned in ((99_999_999, 1), (100_000_000, 1), (100_000_000, 2)):
        save(tmp_path, steps, learned, keep=9)
    assert good(tmp_path) == ["100000000-02", "100000000-01", "99999999-01"]


def test_what_was_not_written_to_its_end_is_none(tmp_path):
    save(tmp_path, 1)
    for name in ("00000002-00.partial", "00000001-00.old.partial", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert good(tmp_path) == ["00000001-00"]
    save(tmp_path, 3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000001-00", "00000003-00", "notes"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run's folder with two checkpoints."""
    run = tmp_path_factory.mktemp("two")
    save(run, 1)
    save(run, 2)
    return run


@some
@given(data=st.data())
def test_damage_anywhere_is_recognised_and_the_one_before_is_good(two, data):
    newest = two / "checkpoints" / "00000002-00"
    file = data.draw(st.sampled_from(sorted(newest.iterdir())))
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "longer", "swap"])):
        case "flip":
            bit = 1 << data.draw(st.integers(0, 7))
            damaged = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
        case "cut":
            damaged = content[:place]
        case "longer":
            damaged = content[:place] + b"\0" + content[place:]
        case "swap":
            damaged = content[place:] + content[:place] if place else content[::-1]
    try:
        file.write_bytes(damaged)
        found = read(two)
    finally:
        file.write_bytes(content)
    # Of JSON some changes are none: an e that becomes an E, a line that does not end.
    if file.name == "checkpoint.json" and isinstance(found[0], Checkpoint):
        assert json.loads(damaged) == json.loads(content)
    else:
        assert isinstance(found[0], DamagedError)
        assert str(found[0]).startswith("checkpoint 00000002-00 is damaged: ")
    assert isinstance(found[1], Checkpoint)


def test_a_file_that_is_gone_is_damage(tmp_path):
    save(tmp_path, 1)
    for file in sorted((tmp_path / "checkpoints" / "00000001-00").iterdir()):
        content = file.read_bytes()
        file.unlink()
        (found,) = read(tmp_path)
        assert isinstance(found, DamagedError)
        assert file.name in str(found)
        file.write_bytes(content)


def test_a_write_that_fails_at_any_byte_loses_nothing(tmp_path):
    save(tmp_path, 1)
    sizes = [file.stat().st_size for file in (tmp_path / "checkpoints" / "00000001-00").iterdir()]
    failed = 0
    for size in range(0, max(sizes) + 40, 3):
        (tmp_path / "checkpoints" / "00000007-00").mkdir(exist_ok=True)  # damaged, to be replaced
        told = None
        with files_end_at(size):
            try:
                save(tmp_path, 7)
            except NotSavedError as error:
                told = str(error)
        if told is None:
            assert good(tmp_path) == ["00000007-00", "00000001-00"]
            break
        failed += "File too large" in told
        assert good(tmp_path) == ["00000001-00"]
        assert not list((tmp_path / "checkpoints").glob("*.partial"))
    assert failed >= max(sizes) // 3


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_any_call_that_fails_loses_nothing(tmp_path, monkeypatch, call):
    save(tmp_path, 1, keep=1)
    real, left = getattr(os, call), 0

    def broken(*args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(5, "Input/output error")
        return real(*args, **kwargs)

    for calls in range(20):
        left = calls
        monkeypatch.setattr(os, call, broken)
        with contextlib.suppress(NotSavedError):
            save(tmp_path, 2, keep=1)
        monkeypatch.undo()
        assert good(tmp_path)
        assert all(isinstance(each, Checkpoint) for each in read(tmp_path))
        if left >= 0:
            break
    assert 3 <= calls < 19
    assert good(tmp_path) == ["00000002-00"]
