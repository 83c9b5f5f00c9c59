"""Experience replay: some rows of earlier tasks are kept, and learned again with each new task.

After task i the buffer takes floor(ratio * n_i) of its n_i training rows, at least one. TRACE (Wang
et al., arXiv 2310.06762) keeps the first 10%, and adds Lima, rows of no task. Two schedules:

    trace        theta_i = pass over shuffle(rows kept of tasks < i, Lima) from train(D_i)
                 TRACE's: one pass, after the task's own epochs. Without Lima the first task has
                 none. The pass is part of its task: one learning-rate schedule spans both, and all
                 strategies act in it. TRACE's own schedule is constant. A cosine leaves the pass
                 its tail: with 5000 rows a task and 500 kept of each, 0.02 to 1.1 steps' worth of
                 the peak rate, so there let it start anew with the pass (`restart: true`).
    interleaved  every batch of B is B - b rows of the task and b = mix * B old ones, as in Chaudhry
                 et al. (arXiv 1902.10486) with b = B/2.

Rows are kept as they were tokenised, so within their own task's budgets. A reservoir (algorithm R:
Vitter, ACM TOMS 11(1), 1985) holds each row of all past tasks with equal probability size/rows; the
other selections hold rows per task. With MoFO, momentum goes on through the pass, and selects on
gradients that are old and new at once where batches are mixed.

Cost: the buffer in the host's memory, about 8 bytes a token. Time, with K rows kept and L of Lima:
trace adds (K + L)/B steps to a task, interleaved multiplies a task's steps by 1/(1 - mix).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from cl_mofo.data.examples import pack, unpack
from cl_mofo.data.stages import Stage
from cl_mofo.data.tokenise import Example
from cl_mofo.errors import UserError
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    from cl_mofo.config import Recipe
    from cl_mofo.loop import Loop

Row = TypeVar("Row")


def first_or_random(
    rows: Sequence[Row], count: int, generator: np.random.Generator | None = None
) -> list[Row]:
    """Return the first `count` rows, or as many drawn without replacement, in their order."""
    if generator is None or count >= len(rows):
        return list(rows[:count])
    return [rows[i] for i in sorted(generator.permutation(len(rows))[:count])]


def reservoir(
    kept: Sequence[Row],
    seen: int,
    rows: Sequence[Row],
    size: int,
    generator: np.random.Generator,
) -> list[Row]:
    """Let a stream flow on into a uniform sample of it (Vitter's algorithm R).

    Args:
        kept: the sample so far, min(size, seen) rows.
        seen: how many rows the stream has had.
        rows: those that come now.
        size: most rows kept, at least 1.
        generator: draws which are replaced.

    Returns:
        the sample: each of the seen + len(rows) rows is in it with equal probability.
    """
    sample = list(kept)
    for number, row in enumerate(rows, start=seen + 1):
        if len(sample) < size:
            sample.append(row)
        elif (place := int(generator.integers(number))) < size:
            sample[place] = row
    return sample


@dataclass(frozen=True)
class Kept:
    """A row in the buffer: its task, its index in that task's training split, its tokens."""

    task: str
    index: int
    example: Example


class Replay(Strategy):
    """Learn rows of earlier tasks again."""

    name = "replay"
    phases = frozenset({"data", "end"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Args:
            schedule: "trace" learns old rows in a pass after each task, "interleaved" in its
                batches.
            ratio: share of each past task's rows that is kept, in (0, 1]; the decimal as written.
            size: keep so many rows of each past task instead, at least 1; of all together with a
                reservoir, which needs it.
            selection: keep the "first" rows (TRACE's), "random" ones, or a "reservoir".
            auxiliary: learn the rows of no task (Lima) with the old ones, where there are any.
            restart: start the learning rate's schedule anew with the pass. Otherwise one schedule
                spans task and pass; where it ends at zero, a pass that is short beside its task
                gets almost no learning rate.
            mix: share of old rows in a batch of the interleaved schedule, in (0, 1); rounded to
                whole rows, with one row of each kind at least.
        """

        schedule: Literal["trace", "interleaved"] = "trace"
        ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
        size: Annotated[int, Field(ge=1)] | None = None
        selection: Literal["first", "random", "reservoir"] = "first"
        auxiliary: bool = True
        restart: bool = False
        mix: Annotated[float, Field(gt=0, lt=1)] = 0.5

        def __post_init__(self) -> None:
            """Refuse a reservoir without a size."""
            if self.selection == "reservoir" and self.size is None:
                raise ValueError(
                    "selection: reservoir keeps a fixed number of rows of all past tasks "
                    "together; give that number as size"
                )

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.buffer: list[Kept] = []
        self.seen = 0
        self._auxiliary: list[Example] | None = None
        self._record: dict[str, Any] = {}

    def stages(self, loop: Loop, stages: list[Stage]) -> list[Stage]:
        """Append the pass over old rows, or mix them into the task's batches."""
        if self._auxiliary is None:
            self._auxiliary = loop.encoded(loop.auxiliary) if self.config.auxiliary else []
        old = [kept.example for kept in self.buffer] + self._auxiliary
        if old and self.config.schedule == "trace":
            stages = [*stages, Stage("replay", old, 1, restart=self.config.restart)]
        elif old:
            taken = self._old_in(loop.recipe.optimizer.batch_size)
            stages = [dataclasses.replace(s, memory=old, from_memory=taken) for s in stages]
        return stages

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse batches that cannot hold both old and new rows."""
        if self.config.schedule == "interleaved" and recipe.optimizer.batch_size < 2:
            raise UserError(
                "recipe key replay.schedule: interleaved puts old and new rows into one batch, and "
                "optimizer.batch_size is 1; give at least 2, or take schedule: trace"
            )

    def _old_in(self, batch_size: int) -> int:
        return min(max(1, round(self.config.mix * batch_size)), batch_size - 1)

    def after_experience(self, loop: Loop) -> None:
        """Note which rows were replayed, and take rows of the task into the buffer."""
        self._record = self._replayed(loop)
        generator = loop.generator("replay")
        name = loop.plan.task.name
        rows = [Kept(name, i, example) for i, example in enumerate(loop.examples)]
        size = self.config.size
        if self.config.selection == "reservoir" and size is not None:
            self.buffer = reservoir(self.buffer, self.seen, rows, size, generator)
        else:
            count = size or self._share_of(len(rows))
            draw = generator if self.config.selection == "random" else None
            self.buffer += first_or_random(rows, count, draw)
        self.seen += len(rows)

    def _share_of(self, rows: int) -> int:
        return max(1, math.floor(Fraction(str(self.config.ratio)) * rows))

    def _replayed(self, loop: Loop) -> dict[str, Any]:
        epochs = sum(stage.epochs for stage in loop.stages)
        batches = [batch for epoch in range(epochs) for batch in loop.drawn(epoch)][: loop.step]
        drawn = [example for batch in batches for example in batch]
        # By identity: rows of equal tokens are not the same row.
        times = Counter(id(example) for example in drawn)
        rows: dict[str, list[int]] = {}
        for kept in self.buffer:
            if times[id(kept.example)]:
                rows.setdefault(kept.task, []).append(kept.index)
        return {
            "rows": {task: sorted(indices) for task, indices in rows.items()},
            "auxiliary": sum(times[id(example)] > 0 for example in self._auxiliary or ()),
            "draws": len(drawn) - sum(times[id(example)] for example in loop.examples),
        }

    def record(self) -> dict[str, Any]:
        """Return what was replayed in the task just learned.

        `rows`: {task: indices of the rows replayed, in its training split}; `auxiliary`: how many
        rows of no task were; `draws`: how many examples of the task's batches were old, repeated
        ones included.
        """
        return self._record

    def state_dict(self) -> dict[str, Any]:
        """Return the buffer."""
        return {
            "examples": pack([kept.example for kept in self.buffer]),
            "tasks": [kept.task for kept in self.buffer],
            "indices": [kept.index for kept in self.buffer],
            "seen": self.seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the buffer back."""
        rows = zip(state["tasks"], state["indices"], unpack(state["examples"]), strict=True)
        self.buffer = [Kept(task, index, example) for task, index, example in rows]
        self.seen = state["seen"]
