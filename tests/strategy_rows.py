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
    free = [name for name in run.loop.trainable if "lora_A" not in name]
    # All of them, or the half that hft lets move.
    assert sum(run.moved(name) > 0 for name in free) > 0.4 * len(free)


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
    learned = [p for name, p in run.loop.trainable.items() if ".lora_B." in name]
    # Zero at the start; hft may have frozen one in every step so far.
    assert sum(bool(p.count_nonzero()) for p in learned) > 0.8 * len(learned)


def replay_acted(run: TwoTasks) -> None:
    first, second = (plan.task.name for plan in run.loop.plans)
    stages = [(row["task"], row["stage"]) for row in run.rows]
    # Half of eight rows in batches of four: a pass of one step, after the second task only.
    assert stages == [(first, "task")] * 2 + [(second, "task")] * 2 + [(second, "replay")]
    assert run.strategy("replay").record()["rows"] == {first: [0, 1, 2, 3]}


def hft_acted(run: TwoTasks) -> None:
    run.loop.global_step -= 1
    frozen = run.strategy("hft").draw_for(run.loop)
    run.loop.global_step += 1
    moved = {name for name in run.loop.trainable if run.moved(name) > 0}
    assert moved
    assert moved.isdisjoint(frozen)
    assert 0.3 < len(frozen) / len(run.loop.trainable) < 0.6


def gem_acted(run: TwoTasks) -> None:
    assert run.strategy("gem").record() == {"memory_examples": [3, 3]}
    assert ["gem.violated" in row for row in run.rows] == [row in run.second() for row in run.rows]
    for row in run.second():
        assert (row["gem.violated"] > 0) == (row["gem.least_cosine"] < 0)
        assert (row["gem.violated"] > 0) == (abs(row["gem.norm_ratio"] - 1) > 1e-9)


def agem_acted(run: TwoTasks) -> None:
    assert run.strategy("agem").record() == {"memory_examples": [4, 4]}
    assert ["agem.cosine" in row for row in run.rows] == [row in run.second() for row in run.rows]


def ewc_acted(run: TwoTasks) -> None:
    assert run.strategy("ewc").record()["fisher_examples"] == 4
    assert ["ewc.ratio" in row for row in run.rows] == [row in run.second() for row in run.rows]
    # At the task's first step the weights are the anchor's.
    assert [row["ewc.ratio"] > 0 for row in run.second()][:2] == [False, True]


ROWS: dict[str, Row] = {
    "sequential": Row(sequential_acted),
    "mofo": Row(mofo_acted, {"mofo.update_fraction": 0.05}),
    "lora": Row(lora_acted, {"lora.rank": 4, "lora.dropout": 0.1}),
    "replay": Row(replay_acted, {"replay.ratio": 0.5}),
    "hft": Row(hft_acted),
    "gem": Row(gem_acted, {"gem.memory_examples": 3, "gem.refresh": 2}),
    "agem": Row(agem_acted),
    "ewc": Row(ewc_acted, {"ewc.fisher_examples": 4}),
}
