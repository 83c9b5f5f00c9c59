"""What a task's steps run over: its own rows, and what a strategy adds to them.

A task is one stage after another. Hooks, counters and, unless a stage says otherwise, the learning
rate know only the task: a stage that is added is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cl_mofo.data.batches import epoch_order
from cl_mofo.data.tokenise import Example


@dataclass(frozen=True)
class Stage:
    """Some epochs over some examples.

    Args:
        name: what `metrics.parquet` calls its steps.
        examples: each is seen once an epoch; at least one.
        epochs: passes over them, at least 1.
        memory: examples of which every batch takes some in addition.
        from_memory: how many of a batch's examples come from `memory`, less than the batch size.
            Each is drawn equally often, up to one.
        restart: the learning rate's schedule ends with the stage before, and starts anew.
    """

    name: str
    examples: Sequence[Example]
    epochs: int
    memory: Sequence[Example] = ()
    from_memory: int = 0
    restart: bool = False

    def steps(self, batch_size: int) -> int:
        """Return how many batches all its epochs have."""
        return self.epochs * math.ceil(len(self.examples) / self._own(batch_size))

    def _own(self, batch_size: int) -> int:
        return batch_size - (self.from_memory if self.memory else 0)

    def batches(
        self, batch_size: int, seed: Sequence[int], *, group_by_length: bool = False
    ) -> list[list[Example]]:
        """Draw one epoch's batches; the last may be a short one.

        Args:
            batch_size: examples in a batch, those from memory included.
            seed: non-negative integers that determine the draw.
            group_by_length: as for `epoch_order`.
        """
        order = epoch_order(
            [len(example) for example in self.examples],
            self._own(batch_size),
            seed,
            group_by_length=group_by_length,
        )
        batches = [[self.examples[i] for i in indices] for indices in order]
        if self.memory and self.from_memory:
            drawn = iter(self._drawn(len(batches) * self.from_memory, seed))
            for batch in batches:
                batch += [self.memory[next(drawn)] for _ in range(self.from_memory)]
        return batches

    def _drawn(self, count: int, seed: Sequence[int]) -> list[int]:
        generator = np.random.default_rng(np.random.SeedSequence([*seed, 1]))
        rounds = math.ceil(count / len(self.memory))
        parts = [generator.permutation(len(self.memory)) for _ in range(rounds)]
        return [int(i) for i in np.concatenate(parts)[:count]]


def stage_of(stages: Sequence[Stage], epoch: int) -> Stage:
    """Return the stage that an epoch of a task belongs to; the last one, past all epochs."""
    for stage in stages:
        if epoch < stage.epochs:
            return stage
        epoch -= stage.epochs
    return stages[-1]


def schedule_of(stages: Sequence[Stage], epoch: int, batch_size: int) -> tuple[int, int]:
    """Return the learning rate's schedule that an epoch of a task belongs to.

    Args:
        stages: the task's, at least one.
        epoch: of the task, from 0.
        batch_size: examples in a batch.

    Returns:
        the step of the task at which it starts, and how many steps it spans.
    """
    first = steps = epochs = 0
    for stage in stages:
        if stage.restart and epoch >= epochs:
            first, steps = first + steps, 0
        elif stage.restart:
            break
        steps += stage.steps(batch_size)
        epochs += stage.epochs
    return first, steps
