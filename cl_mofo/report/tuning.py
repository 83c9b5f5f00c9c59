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
    from cl_mofo.contest import Candidate
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
    said += [*_undone(tuned), *_ends(tuned), *_ties(tuned)]
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


def _undone(tuned: Tuned) -> Iterator[str]:
    for contest in tuned.contests:
        if not contest.done:
            count = sum(c.state not in ("finished", "diverged") for c in contest.candidates)
            yield f"{contest.name}: {count} of {len(contest.candidates)} are not done"


def _ends(tuned: Tuned) -> Iterator[str]:
    """Say where the best value is the grid's first or last, so that one beyond may be better."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for contest in tuned.contests:
        best = {} if contest.best is None else contest.candidates[contest.best].values
        for key, value in best.items():
            if end := _end(value, tuned.grid[key]):
                found.setdefault((key, _value(value), end), []).append(contest.name)
    for (key, value, end), names in found.items():
        yield (
            f"The grid ends at the best {key} of {', '.join(names)}, {value}: try {end} values "
            "beside these, whose runs are not made again"
        )


def _ties(tuned: Tuned) -> Iterator[str]:
    """Say where the examples are too few to tell the best from others."""
    found = []
    for contest in tuned.contests if tuned.by == "op" else ():
        best = None if contest.best is None else contest.candidates[contest.best]
        near = [c for c in contest.candidates if best and c is not best and _near(best, c)]
        if best and best.error is not None and near:
            others = len(contest.candidates) - 1
            found.append(f"{contest.name} ({len(near)} of {others}; {best.error:.1f} points)")
    if found:
        yield (
            f"Not clear, as others lie within one standard error of the best OP (over examples, at "
            f"most): {', '.join(found)}. More examples or seeds would tell them apart"
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
