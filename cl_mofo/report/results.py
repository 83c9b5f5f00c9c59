"""The scores of one run, and what follows from them: OP, BWT, and how much was learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cl_mofo.evaluation import ResultMatrix, figure
from cl_mofo.report.settings import Settings
from cl_mofo.untrusted import printable

OP_CONVENTION = "OP_t = mean over i<=t of R[t,i]"
BWT_CONVENTION = "BWT_t = mean over i<t of (R[t,i] - R[i,i]), divisor t-1, signed"

Cells = tuple[float | None, ...]


@dataclass(frozen=True)
class RunResults:
    """One run's scores.

    Args:
        path: the `results.json` it came from.
        strategy: the strategy's name as written, such as "ewc+mofo".
        seed: the run's seed.
        suite, model: what it ran on; empty where the file does not say.
        tasks: the T task names in the order learned.
        headline: the metric in `scores`, by task; may be empty.
        scores: T rows of T percents, None where unmeasured; row i is after learning task i.
        initial: T percents before any training, or None.
        finished: whether all tasks are learned and scored.
        settings: the recipe it ran by, as far as known: dotted keys, values as JSON.
        cut: whether answers were generated only until the headline metric was settled.
        distances: to the initial weights, after each task; empty where not measured.
        prose_losses: nats per token of prose, before training and after each task; may be empty.
    """

    path: Path
    strategy: str
    seed: int
    suite: str
    model: str
    tasks: tuple[str, ...]
    headline: Mapping[str, str]
    scores: tuple[Cells, ...]
    initial: Cells | None
    finished: bool
    settings: Settings = field(default_factory=dict)
    cut: bool = False
    distances: tuple[float, ...] = ()
    prose_losses: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The run folder's name, printable."""
        return printable(self.path.absolute().parent.name).replace("\n", r"\n")

    @property
    def learned_tasks(self) -> int:
        """The number of tasks learned so far: the last row with a measured cell."""
        measured = (t for t, row in enumerate(self.scores, 1) if any(c is not None for c in row))
        return max(measured, default=0)

    @cached_property
    def op(self) -> Cells:
        """OP_t for t = 1 .. tasks learned; None where a cell it needs is unmeasured."""
        return tuple(figure(self._matrix.op, t) for t in range(1, self.learned_tasks + 1))

    @cached_property
    def bwt(self) -> Cells:
        """BWT_t for t = 1 .. tasks learned; None for t = 1 and where a cell is unmeasured."""
        return tuple(figure(self._matrix.bwt, t) for t in range(1, self.learned_tasks + 1))

    @cached_property
    def learned(self) -> float | None:
        """Mean of R[i,i] over the tasks learned; None where one is unmeasured."""
        return figure(self._matrix.learned, self.learned_tasks)

    @property
    def split(self) -> str:
        """Which split was scored, as its recipe says; "test" for a run without one."""
        return self.settings.get("evaluation.split", '"test"').strip('"')

    @property
    def distance(self) -> float | None:
        """Relative distance to the initial weights after the last task learned."""
        return self.distances[-1] if self.distances else None

    @property
    def perplexities(self) -> tuple[float, float] | None:
        """Perplexity on prose before training and after the last task learned."""
        if len(self.prose_losses) < 2:
            return None
        return math.exp(self.prose_losses[0]), math.exp(self.prose_losses[-1])

    @property
    def final(self) -> Cells:
        """Scores of all T tasks after the last task learned."""
        t = self.learned_tasks
        return self.scores[t - 1] if t else (None,) * len(self.tasks)

    @cached_property
    def _matrix(self) -> ResultMatrix:
        return ResultMatrix(self.tasks, self.scores)
