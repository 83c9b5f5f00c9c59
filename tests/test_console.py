"""What a run shows where no bar can be drawn: lines, now and then."""

import io

import pytest
from rich.console import Console as RichConsole

from cl_mofo import console
from cl_mofo.console import Console


class Plan:
    class task:  # noqa: N801
        name = "FOMC"


@pytest.fixture
def shown(monkeypatch):
    """A console that writes to a string and finds every moment worth a line."""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", -1.0)
    return Console(RichConsole(file=io.StringIO(), width=100))


def test_progress_is_told_in_lines(shown):
    shown.answering(Plan, 40, learned=1)
    shown.answered(16, 80)
    shown.answered(24, 90)
    shown.stop()
    lines = shown.console.file.getvalue().splitlines()
    assert [line.split("  ")[:2] for line in lines if line] == [
        ["test FOMC", "16/40"],
        ["test FOMC", "40/40"],
    ]


def test_lines_are_not_told_more_often_than_set(monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 3600.0)
    quiet = Console(RichConsole(file=io.StringIO()))
    quiet.answering(Plan, 40, learned=1)
    quiet.answered(40, 1)
    quiet.stop()
    assert quiet.console.file.getvalue().strip() == ""


def test_names_are_not_markup(shown):
    class Odd:
        class task:  # noqa: N801
            name = "[red]x[/]"

    shown.answering(Odd, 1, learned=0)
    shown.answered(1, 1)
    shown.stop()
    assert "[red]x[/]" in shown.console.file.getvalue()
