"""A run of a second, what stops it, and how one sees that it went on to the same end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import cl_mofo
from cl_mofo import mini
from cl_mofo.checkpoint.store import Store
from cl_mofo.engine.ranks import Ranks
from cl_mofo.files import DamagedError
from cl_mofo.observer import Observer
from tests.soak import differences

SMALL = {
    "model": {"path": "tiny", "device": "cpu"},
    "data": {"suite": "trace-mini", "train_limit": 8, "test_limit": 4},
    "strategy": "mofo",
    "tasks": {"only": ["FOMC", "Py150"], "epochs": 1, "prompt_tokens": 64, "answer_tokens": 4},
    "optimizer": {"lr": 5e-4, "batch_size": 4},
    "evaluation": {"initial": True, "batch_size": 2, "cache": False},
    "checkpoint": {"every_steps": 1, "keep": 3},
}
"""Two tasks of two steps each."""
STOP = 3
"""The step after which the stopped run stops; it is the first of the second task."""


class StoppedHereError(Exception):
    """Stops a run as a fault of its own would."""


class At(Observer):
    """Does something after a step, and keeps the warnings."""

    def __init__(self, step: int = 0, act: Callable[[], None] | None = None) -> None:
        self.step, self.act = step, act
        self.warnings: list[str] = []
        self.resumed_from = ""

    def stepped(self, loop):
        if loop.global_step == self.step and self.act is not None:
            self.act()

    def warned(self, text):
        self.warnings.append(text)

    def resumed(self, where):
        self.resumed_from = where


def stop() -> None:
    raise StoppedHereError


def names(folder: Path) -> list[str]:
    return sorted((p.name for p in (folder / "checkpoints").glob("*-*")), reverse=True)


def good(folder: Path) -> list[str]:
    """Return the checkpoints that are as they were written, the newest first."""
    found = Store(folder, Ranks(), keep=1).read()
    return [each.name for each in found if not isinstance(each, DamagedError)]


def goes_on(folder: Path, whole: Path, **settings) -> At:
    """Go on with a run, and compare its end with the undisturbed run's."""
    observer = At()
    cl_mofo.resume(folder, observer=observer, **settings)
    assert differences(whole, folder) == []
    return observer


def data_of(folder: Path) -> Path:
    """Write the two tasks as a user's files."""
    for task in ("FOMC", "Py150"):
        (folder / task).mkdir()
        for split, rows in mini.records()[task].items():
            (folder / task / f"{split}.json").write_text(json.dumps(rows[:8]))
    return folder


def stopped_run(recipe: Mapping[str, Any], folder: Path) -> Path:
    """Run until after `STOP` steps; return the folder."""
    with pytest.raises(StoppedHereError):
        cl_mofo.run(recipe, out=folder, observer=At(STOP, stop))
    assert names(folder) == ["00000002-01", "00000002-00", "00000001-00"]
    return folder
