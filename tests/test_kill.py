"""Runs that are killed or asked to stop go on, and end bit for bit as if nothing had been.

A sample of `make soak` (tests/soak.py), and what signals do.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import cl_mofo
from cl_mofo.errors import StoppedError
from cl_mofo.evaluation.journal import Journal
from cl_mofo.stopping import AGAIN
from tests.forked import command_line, finish, start
from tests.small_run import SMALL, At, goes_on, good, names
from tests.soak import differences, phase, soak, table


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    cl_mofo.run(SMALL, out=folder)
    return folder


def test_a_sample_of_the_soak(tmp_path):
    recipes = [SMALL, SMALL | {"strategy": "ewc+mofo", "ewc": {"fisher_examples": 2}}]
    outcomes = soak(recipes, kills=2, seed=time.time_ns(), jobs=1, root=tmp_path)
    print(table(outcomes))
    assert [outcome.wrong for outcome in outcomes] == [[]] * 4
    assert all(outcome.phases for outcome in outcomes)


class Command:
    """The command line as a process of its own."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.errors = cwd / f"{arguments[0]}.errors"
        self.process = start(
            command_line, *arguments, told=cwd / "told", errors=self.errors, cwd=cwd
        )

    def wait_for(self, come: Callable[[], bool]) -> None:
        """Wait until something has come about."""
        until = time.monotonic() + 120
        while not come():
            assert self.process.is_alive(), self.errors.read_text()
            assert time.monotonic() < until
            time.sleep(0.005)

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Wait for its end; return its exit code and its messages."""
        return finish(self.process, seconds), self.errors.read_text()


SLOW = """
import os, time
from cl_mofo.strategy import Strategy
class Slow(Strategy):
    name, phases = "slow", frozenset({"penalty"})
    def on_gradients(self, loop):
        time.sleep(float(os.environ.get("SECONDS_A_STEP", 0)))
"""


def test_the_command_line_is_killed_and_stopped_and_goes_on(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(SLOW)
    recipe, log = tmp_path / "recipe.yaml", tmp_path / "run" / "run.log"
    recipe.write_text(yaml.safe_dump(SMALL | {"strategy": "slow+mofo"}))
    mine = ["--import", "slow.py"]
    monkeypatch.setenv("SECONDS_A_STEP", "2")
    command = Command("run", str(recipe), *mine, "--out", "run", cwd=tmp_path)
    command.wait_for(lambda: good(tmp_path / "run") == ["00000001-00"])
    command.process.kill()
    assert command.end()[0] == -signal.SIGKILL
    assert good(tmp_path / "run") == ["00000001-00"]
    assert phase(tmp_path / "run") == "training"

    command = Command("resume", "run", *mine, cwd=tmp_path)
    command.wait_for(lambda: log.read_text().count("learning") == 2)
    command.process.terminate()
    code, told = command.end(30)
    assert code == 75
    assert told == (
        "cl-mofo: stopped by SIGTERM after step 2 of 2 on FOMC; checkpoint 00000002-00 is written. "
        f"To go on: cl-mofo resume run --import {tmp_path}/slow.py\n"
    )
    monkeypatch.undo()
    cl_mofo.run(
        SMALL | {"strategy": "slow+mofo", "imports": [str(tmp_path / "slow.py")]},
        out=tmp_path / "whole",
    )
    goes_on(tmp_path / "run", tmp_path / "whole", imports=[tmp_path / "slow.py"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_lets_a_run_save_and_leave(tmp_path, whole, number):
    kind = KeyboardInterrupt if number == signal.SIGINT else StoppedError
    before = signal.getsignal(number)
    rare = SMALL | {"checkpoint": {"every_minutes": None}}
    with pytest.raises(kind, match="after step 1 of 2 on Py150; checkpoint 00000003-01 is written"):
        cl_mofo.run(rare, out=tmp_path, observer=At(3, lambda: signal.raise_signal(number)))
    assert signal.getsignal(number) is before
    # That of the first task's end, and this.
    assert names(tmp_path) == good(tmp_path) == ["00000003-01", "00000002-01"]
    cl_mofo.resume(tmp_path)
    assert differences(whole, tmp_path) == ["recipe.yaml differs"]


def test_a_second_signal_stops_at_once(tmp_path, whole, monkeypatch):
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same request, that came by two ways
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 2 * AGAIN)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it was not stopped")

    with pytest.raises(StoppedError, match="at once"):
        cl_mofo.run(SMALL, out=tmp_path, observer=At(3, twice))
    assert names(tmp_path) == ["00000002-01", "00000002-00", "00000001-00"]
    monkeypatch.undo()
    goes_on(tmp_path, whole)


class InTest(At):
    """Raises a signal within a test set, and counts what is answered."""

    def __init__(self, learned: int | None = None, task: str = "", after: int = 0) -> None:
        super().__init__()
        self.place, self.after = (learned, task), after
        self.now: Any = None
        self.count: Counter[Any] = Counter()

    def answering(self, plan, examples, learned):
        self.now = (learned, plan.task.name)

    def answered(self, examples, tokens):
        self.count[self.now] += examples
        if self.now == self.place and self.count[self.now] == self.after:
            signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("after", [2, 4])
def test_what_is_answered_is_not_asked_again(tmp_path, whole, monkeypatch, after):
    first = InTest(2, "FOMC", after)
    with pytest.raises(StoppedError, match="while testing FOMC; the answers so far are kept"):
        cl_mofo.run(SMALL, out=tmp_path, observer=first)
    assert first.count[2, "FOMC"] == after
    assert first.count[2, "Py150"] == 0
    asked: list[int] = []
    keep = Journal.keep

    def counted(journal, answers):
        asked.extend(answers)
        keep(journal, answers)

    monkeypatch.setattr(Journal, "keep", counted)
    goes_on(tmp_path, whole)
    assert len(asked) == 8 - after
