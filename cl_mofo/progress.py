"""How far a run has come, and what it has measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cl_mofo.config import Recipe
from cl_mofo.data.plan import TaskPlan
from cl_mofo.data.records import Splits
from cl_mofo.evaluation import ResultMatrix, figure
from cl_mofo.files import DamagedError

SCHEMA = 1


def cells_tested(learned: int, tasks: int, which: str) -> range:
    """Return which of so many tasks, from 0, are tested after the first `learned` of them.

    Args:
        learned: at least 1.
        tasks: at least `learned`.
        which: the recipe's `evaluation.tasks`.
    """
    if which == "all":
        return range(tasks)
    return range(learned - 1 if which == "ends" and learned < tasks else 0, learned)


@dataclass
class Progress:
    """What a run over n tasks has measured; row t of a matrix is after t tasks, row 0 before all.

    Args:
        scores: [n + 1, n] headline metrics, None where not measured.
        metrics: [n + 1, n] all metrics of a test set by name.
        losses: [n + 1, n] mean losses per answer token, in nats.
        distances: to the initial weights, after each task.
        prose: mean losses per token on prose, in nats, before all tasks and after each; empty
            where there is no prose.
        learned: tasks learned.
        skipped: steps that were not taken, as their loss or gradient was not finite.
        seconds: spent in training and in evaluation.
    """

    scores: list[list[float | None]]
    metrics: list[list[dict[str, float] | None]]
    losses: list[list[float | None]]
    distances: list[float] = field(default_factory=list)
    prose: list[float] = field(default_factory=list)
    learned: int = 0
    skipped: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 0.0, "evaluation": 0.0})

    @classmethod
    def of(cls, tasks: int) -> Progress:
        """Return the progress of a run that has not begun."""
        rows = range(tasks + 1)
        return cls(
            scores=[[None] * tasks for _ in rows],
            metrics=[[None] * tasks for _ in rows],
            losses=[[None] * tasks for _ in rows],
        )

    def missing(self, learned: int, tested: Sequence[int]) -> list[int]:
        """Return which of some tasks have not been tested after `learned` tasks."""
        return [task for task in tested if self.scores[learned][task] is None]

    def add(
        self, learned: int, task: int, metrics: dict[str, float], headline: str, loss: float | None
    ) -> None:
        """Add what a test set showed after so many tasks."""
        self.losses[learned][task] = loss
        self.metrics[learned][task] = metrics
        self.scores[learned][task] = metrics[headline]

    def measured(self, which: str) -> int:
        """Return after how many tasks all of those learned have been tested that were to be.

        Args:
            which: the recipe's `evaluation.tasks`.
        """
        tasks = len(self.scores) - 1
        for t in range(1, self.learned + 1):
            wanted = [i for i in cells_tested(t, tasks, which) if i < t]
            if self.missing(t, wanted):
                return t - 1
        return self.learned

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Any, tasks: int) -> Progress:
        """Return what was saved of a run over so many tasks.

        Raises:
            DamagedError: it is of another form.
        """
        if isinstance(found, dict):
            found = {"prose": []} | found  # of a version without prose
        if not isinstance(found, dict) or found.keys() != {f.name for f in fields(cls)}:
            raise DamagedError("the record of its progress is of another form")
        progress = cls(**found)
        matrices = (progress.scores, progress.metrics, progress.losses)
        good = all(_is_matrix(matrix, tasks) for matrix in matrices) and (
            all(_is_number(v, none=True) for m in matrices[::2] for row in m for v in row)
            and all(v is None or _are_numbers(v) for row in progress.metrics for v in row)
            and isinstance(progress.distances, list)
            and all(map(_is_number, progress.distances))
            and len(progress.distances) <= tasks
            and isinstance(progress.prose, list)
            and all(map(_is_number, progress.prose))
            and len(progress.prose) <= tasks + 1
            and type(progress.learned) is int
            and 0 <= progress.learned <= tasks
            and type(progress.skipped) is int
            and progress.skipped >= 0
            and _are_numbers(progress.seconds)
            and progress.seconds.keys() == cls.of(0).seconds.keys()
        )
        if not good:
            raise DamagedError("the record of its progress is of another form")
        return progress

    def back_to(self, learned: int) -> None:
        """Forget what was measured after more than `learned` tasks."""
        tasks = len(self.scores) - 1
        empty = self.of(tasks)
        self.scores[learned + 1 :] = empty.scores[learned + 1 :]
        self.metrics[learned + 1 :] = empty.metrics[learned + 1 :]
        self.losses[learned + 1 :] = empty.losses[learned + 1 :]
        del self.distances[learned:]
        del self.prose[learned + 1 :]
        self.learned = min(self.learned, learned)

    def results(
        self,
        recipe: Recipe,
        plans: Sequence[TaskPlan],
        records: Mapping[str, Splits],
        strategy: str,
    ) -> dict[str, Any]:
        """Return `results.json` up to the last whole row (docs/architecture.md)."""
        tasks = [plan.task.name for plan in plans]
        known = copy.deepcopy(self)
        known.back_to(self.measured(recipe.evaluation.tasks))
        measured = recipe.evaluation.initial and None not in self.scores[0]
        initial = self.scores[0] if measured else None
        matrix = ResultMatrix(tasks, known.scores[1:], initial)
        learned = range(1, known.learned + 1)
        complete = known.learned == len(tasks)
        settings = recipe.evaluation
        whole = complete and len(tasks) > 1
        transfers = whole and settings.tasks == "all" and initial is not None
        return {
            "schema": SCHEMA,
            "strategy": strategy,
            "seed": recipe.seed,
            "suite": recipe.data.suite,
            "model": recipe.model.path,
            "protocol": recipe.protocol,
            "split": settings.split,
            "measured": settings.metrics,
            "tasks": tasks,
            "headline": {plan.task.name: plan.task.headline for plan in plans},
            "examples": {
                task: {split: len(rows) for split, rows in records[task].items()} for task in tasks
            },
            "scores": known.scores[1:],
            "initial": initial,
            "op": [figure(matrix.op, t) for t in learned],
            "bwt": [figure(matrix.bwt, t) for t in learned],
            "learned": [matrix.learned(after=t) for t in learned],
            "forgetting": matrix.forgetting() if whole and settings.tasks != "ends" else None,
            "forward_transfer": matrix.forward_transfer() if transfers else None,
            "metrics": known.metrics[1:],
            "losses": known.losses[1:] if settings.losses else None,
            "initial_losses": known.losses[0] if measured and settings.losses else None,
            "distance": known.distances or None,
            "prose_losses": known.prose or None,
            "skipped": self.skipped,
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
            "finished": complete,
        }


def _is_matrix(value: Any, tasks: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == tasks + 1
        and all(isinstance(row, list) and len(row) == tasks for row in value)
    )


def _is_number(value: Any, *, none: bool = False) -> bool:
    if value is None:
        return none
    return type(value) in (int, float) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))
