"""A tuning as a table: what each point of the grid scored on validation data, and which is best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from cl_mofo.report.layout import Fitting, grid
from cl_mofo.report.results import BWT_CONVENTION, OP_CONVENTION
from cl_mofo.report.text import ABSENT, number
from cl_mofo.untrusted import shortened

if TYPE_CHECKING:
    from cl_mofo.contest import Candidate, Contest
    from cl_mofo.tuning import Tuned

HEAD = ("OP", "BWT", "learned", "D", "loss", "")


def tuning_table(tuned: Tuned) -> RenderableType:
    """Return what came out of a tuning for a terminal, for a rich console to print."""
    keys = list(tuned.grid)
    head = ["strategy", *keys, *HEAD]
    body = []
    for contest in tuned.contests:
        for place, candidate in enumerate(contest.candidates):
            label = contest.name if place == 0 else ""
            style = "bold" if place == contest.best else ""
            cells = [label, *_cells(candidate, keys, place == contest.best)]
            body.append([Text(shortened(cell), style=style) for cell in cells])
    tables = ([grid(head, body)], [grid(head, body, gap=1)])
    return Group(Fitting(*tables), Text(), *(Text(f"{n}.", style="dim") for n in notes(tuned)))


def notes(tuned: Tuned) -> list[str]:
    """Return what must be said under the table: what it shows, and how far it can be trusted."""
    seeds = f"seed{'s' * (len(tuned.seeds) > 1)} {', '.join(map(str, tuned.seeds))}"
    best = {"op": "highest OP", "learned": "highest learned", "loss": "lowest loss"}[tuned.by]
    said = [
        f"{tuned.examples} validation examples, {seeds}; best: the {best}, of a tie the smaller D, "
        f"then the first"
    ]
    if tuned.alone:
        keys = ", ".join(f"{key}={_value(value)}" for key, value in tuned.alone.items())
        said.append(f"For the tuning alone, and not in the recipe with the best: {keys}")
    said += [note for contest in tuned.contests for note in _doubts(contest, tuned)]
    said.append(
        f"{OP_CONVENTION}; {BWT_CONVENTION}; learned = mean over i of R[i,i]; D = distance to the "
        f"initial weights; loss in nats per answer token, mean over tasks at the end"
    )
    return said


def _cells(candidate: Candidate, keys: Sequence[str], best: bool) -> list[str]:
    figures = candidate.figures
    values = [_value(candidate.values[key]) if key in candidate.values else "" for key in keys]
    distance, loss = figures["distance"], figures["loss"]
    return [
        *values,
        *(number(figures[key]) for key in ("op", "bwt", "learned")),
        ABSENT if distance is None else f"{distance:.3g}",
        ABSENT if loss is None else f"{loss:.3f}",
        "best" if best else "" if candidate.state == "finished" else candidate.state,
    ]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else shortened(value, 24)


def _doubts(contest: Contest, tuned: Tuned) -> Iterator[str]:
    """Say where the grid ends too early, and which candidates are as good as the best."""
    if not contest.done:
        count = sum(c.state not in ("finished", "diverged") for c in contest.candidates)
        yield f"{contest.name}: {count} of {len(contest.candidates)} are not done yet"
    if contest.best is None:
        return
    best = contest.candidates[contest.best]
    for key in (key for key in tuned.grid if key in best.values):
        values = tuned.grid[key]
        end = _end(best.values[key], values)
        if end:
            yield (
                f"{contest.name}: the best {key}, {_value(best.values[key])}, is where the grid "
                f"ends: try {end} values too"
            )
    if tuned.by == "op" and best.error is not None:
        near = [c for c in contest.candidates if c is not best and _near(best, c)]
        if near:
            others = len(contest.candidates) - 1
            yield (
                f"{contest.name}: {len(near)} of {others} others within one standard error of the "
                f"best OP (at most {best.error:.1f} points, for so many examples): the choice is "
                f"not clear; more examples or seeds would make it so"
            )


def _near(best: Candidate, other: Candidate) -> bool:
    ours, theirs = best.figures["op"], other.figures["op"]
    if ours is None or theirs is None or best.error is None:
        return False
    return ours - theirs <= best.error


def _end(value: Any, values: Sequence[Any]) -> str:
    """Say in which direction the grid ends at a value, if it does."""
    numbers = [v for v in values if isinstance(v, Real) and not isinstance(v, bool)]
    if len(numbers) < max(2, len(values)) or not all(map(math.isfinite, numbers)):
        return ""
    return "smaller" if value == min(numbers) else "larger" if value == max(numbers) else ""
