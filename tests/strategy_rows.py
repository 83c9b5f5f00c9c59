"""One row per strategy: how the shared tests run it, and how they see that it acted.

A strategy without a row fails the suite (`test_strategies.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cl_mofo.loop import Loop


@dataclass
class TwoTasks:
    """A finished run over two tasks of two steps each (more with replay)."""

    loop: Loop
    rows: list[dict[str, Any]]
    """The steps' figures, as in `metrics.parquet`."""
    start: Mapping[str, torch.Tensor]
    """All parameters before the first step."""
    before_last: Mapping[str, torch.Tensor]
    """All parameters before the last step."""

    def strategy(self, name: str) -> Any:
        return next(s for s in self.loop.strategies if s.name == name)

    def moved(self, name: str) -> int:
        """Return how many entries of a parameter the last step moved."""
        now = dict(self.loop.model.named_parameters())[name]
        return int((now != self.before_last[name]).sum())

    def second(self) -> list[dict[str, Any]]:
        """Return the second task's steps."""
        return [row for row in self.rows if row["task"] == self.loop.plan.task.name]


@dataclass(frozen=True)
class Row:
    """How a strategy is run and recognised.

    Args:
        acted: asserts on a finished run that the strategy did act, alone and in any combination.
        settings: recipe keys of the small run, where the defaults would not act in it.
    """

    acted: Callable[[TwoTasks], None]
    settings: Mapping[str, Any] = field(default_factory=dict)


def sequential_acted(run: TwoTasks) -> None:
    assert all(run.moved(name) > 0 for name in run.loop.trainable if "lora_A" not in name)


def mofo_acted(run: TwoTasks) -> None:
    for name, parameter in run.loop.trainable.items():
        if "norm" not in name:
            assert run.moved(name) <= math.ceil(0.05 * parameter.numel())
    assert sum(run.moved(name) for name in run.loop.trainable) > 0


def lora_acted(run: TwoTasks) -> None:
    assert run.loop.trainable
    for name, parameter in run.loop.model.named_parameters():
        assert (name in run.loop.trainable) == (".lora_" in name)
        if name not in run.loop.trainable:
            assert torch.equal(parameter, run.start[name])
        elif ".lora_B." in name:
            assert parameter.count_nonzero() > 0  # zero at the start


ROWS: dict[str, Row] = {
    "sequential": Row(sequential_acted),
    "mofo": Row(mofo_acted, {"mofo.update_fraction": 0.05}),
    "lora": Row(lora_acted, {"lora.rank": 4, "lora.dropout": 0.1}),
}
