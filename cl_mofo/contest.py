"""Which of a grid's values is best for a strategy, by what its runs scored on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cl_mofo.grid import Contestant, Plan, leaves
from cl_mofo.several import Swept
from cl_mofo.untrusted import shortened

MEASURES = {"op": 1, "learned": 1, "loss": -1}
"""What a choice can go by, and whether more (1) or less (-1) is better."""
FIGURES = ("op", "bwt", "learned", "distance", "loss")
EQUAL = 1e-6
"""Scores that differ by less are a tie: sums of the same figures in another order."""


@dataclass(frozen=True)
class Candidate:
    """A point of the grid, and what came out of it.

    Args:
        values: what it sets, by dotted keys.
        figures: OP, BWT and `learned` in percent, `distance` to the initial weights, and `loss`,
            the mean over tasks of the validation loss at the end, in nats per token; means over
            its seeds. None where unmeasured, and while it is not finished.
        error: at most how large OP's standard error is, in points, as the validation examples are
            drawn at random; None while it is not finished, and where a score is not from 0 to 100.
        state: "finished", "diverged", "failed", or "running", by another process.
    """

    values: Mapping[str, Any]
    figures: Mapping[str, float | None]
    error: float | None
    state: str


@dataclass(frozen=True)
class Contest:
    """The candidates of one strategy, in the grid's order.

    Args:
        name: the strategy, and what sets it apart from another contest of the same.
        candidates: what was tried.
        best: which was chosen; None if all diverged, or some are not done.
    """

    name: str
    candidates: Sequence[Candidate]
    best: int | None

    @property
    def done(self) -> bool:
        """Whether nothing is left to run."""
        return all(candidate.state in ("finished", "diverged") for candidate in self.candidates)


def contests(plan: Plan, swept: Swept, by: str) -> list[Contest]:
    """Compare the points of the grid for each strategy.

    Args:
        plan: what was tried.
        swept: what came out.
        by: a key of `MEASURES`.
    """
    found = []
    for row, name in enumerate(_names(plan)):
        tried: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for point in plan.points:
            if point.row == row:
                values = {key: value for key, value in point.varied.items() if key != "seed"}
                tried.setdefault(repr(values), (values, []))[1].append(point.name)
        candidates = [_candidate(values, names, swept) for values, names in tried.values()]
        found.append(Contest(name, candidates, _best(candidates, by)))
    return found


def examples(swept: Swept) -> int:
    """Return how many validation examples all tasks of a run have together."""
    return max((sum(_validation(results)) for results in swept.results.values()), default=0)


def _names(plan: Plan) -> list[str]:
    """Name each contestant by its strategy, and by its row where several have the same."""
    strategies = [contestant.strategy for contestant in plan.contestants]
    return [
        each.strategy
        + (f" ({own})" if strategies.count(each.strategy) > 1 and (own := _own(each)) else "")
        for each in plan.contestants
    ]


def _own(contestant: Contestant) -> str:
    keys = leaves(contestant.part).items()
    return ", ".join(f"{key}={shortened(value)}" for key, value in keys if key != "strategy")


def _candidate(values: Mapping[str, Any], names: Sequence[str], swept: Swept) -> Candidate:
    nothing: dict[str, float | None] = dict.fromkeys(FIGURES)
    if not swept.diverged.isdisjoint(names):
        return Candidate(values, nothing, None, "diverged")
    if not swept.failed.keys().isdisjoint(names):
        return Candidate(values, nothing, None, "failed")
    if not all(name in swept.results for name in names):
        return Candidate(values, nothing, None, "running")
    results = [swept.results[name] for name in names]
    known = [_figures(each) for each in results]
    means = {key: _mean([figures[key] for figures in known]) for key in FIGURES}
    return Candidate(values, means, _mean([*map(_error, results)]), "finished")


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None


def _figures(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a finished run's figures at its end."""
    losses, distances = results["losses"], results["distance"]
    return {
        "op": results["op"][-1],
        "bwt": results["bwt"][-1],
        "learned": results["learned"][-1],
        "distance": distances[-1] if distances else None,
        "loss": _mean(losses[-1]) if losses else None,
    }


def _validation(results: Mapping[str, Any]) -> list[int]:
    """Return how many validation examples each task has."""
    return [results["examples"][task]["eval"] for task in results["tasks"]]


def _error(results: Mapping[str, Any]) -> float | None:
    """Bound OP's standard error: a score between 0 and 1 of mean p has at most variance p (1-p)."""
    final = results["scores"][-1]
    if not all(0 <= score <= 100 for score in final):
        return None
    variance = math.fsum(
        score / 100 * (1 - score / 100) / count
        for score, count in zip(final, _validation(results), strict=True)
    )
    return 100 * math.sqrt(variance) / len(final)


def _best(candidates: Sequence[Candidate], by: str) -> int | None:
    """Return which candidate wins, if all are done and one of them can be compared."""
    ranked = []
    for place, candidate in enumerate(candidates):
        score, distance = candidate.figures[by], candidate.figures["distance"]
        if candidate.state not in ("finished", "diverged"):
            return None
        if score is not None:
            further = math.inf if distance is None else distance
            ranked.append((-round(MEASURES[by] * score / EQUAL), further, place))
    return min(ranked)[-1] if ranked else None
