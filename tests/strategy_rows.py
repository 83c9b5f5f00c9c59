"""One row per strategy: how the shared tests run it, and how they see that it acted.

A strategy without a row fails the suite (`test_strategies.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
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
    updated: frozenset[str]
    """The parameters that had a gradient in the last step."""
    changes: Mapping[str, Sequence[tuple[torch.Tensor, torch.Tensor]]]
    """By strategy, for each step: the whole gradient, flat, before and after its `on_gradients`."""

    def strategy(self, name: str) -> Any:
        return next(s for s in self.loop.strategies if s.name == name)

    def alone(self) -> bool:
        return len(self.loop.strategies) == 1

    def moved(self, name: str) -> int:
        """Return how many entries of a parameter the last step moved."""
        now = dict(self.loop.model.named_parameters())[name]
        return int((now != self.before_last[name]).sum())

    def second(self) -> list[dict[str, Any]]:
        """Return the second task's steps."""
        return [row for row in self.rows if row["task"] == self.loop.plan.task.name]

    def changed(self, name: str) -> list[bool]:
        """Say of each step whether a strategy changed the gradient."""
        return [not torch.equal(before, after) for before, after in self.changes[name]]


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
    dense = [name for name in run.updated if ".mlp." in name and "lora_A" not in name]
    assert dense
    for name in dense:  # an update may be too small to change a float's bits
        assert run.moved(name) > 0.9 * run.loop.engine.trainable[name].numel()


def mofo_acted(run: TwoTasks) -> None:
    filtered = [name for name in run.updated if "norm" not in name]
    assert filtered
    for name in filtered:
        most = math.ceil(0.05 * run.loop.engine.trainable[name].numel())
        assert 0.8 * most <= run.moved(name) <= most


def lora_acted(run: TwoTasks) -> None:
    assert run.loop.engine.trainable
    for name, parameter in run.loop.model.named_parameters():
        assert (name in run.loop.engine.trainable) == (".lora_" in name)
        if name not in run.loop.engine.trainable:
            assert torch.equal(parameter, run.start[name])
    learned = [p for name, p in run.loop.engine.trainable.items() if ".lora_B." in name]
    # Zero at the start; hft may have frozen one in every step so far.
    assert sum(bool(p.count_nonzero()) for p in learned) > 0.8 * len(learned)


def replay_acted(run: TwoTasks) -> None:
    first, second = (plan.task.name for plan in run.loop.plans)
    stages = [(row["task"], row["stage"]) for row in run.rows]
    # Half of eight rows in batches of four: a pass of one step, after the second task only.
    assert stages == [(first, "task")] * 2 + [(second, "task")] * 2 + [(second, "replay")]
    assert run.strategy("replay").record()["rows"] == {first: [0, 1, 2, 3]}


def hft_acted(run: TwoTasks) -> None:
    sizes = {name: parameter.numel() for name, parameter in run.loop.engine.trainable.items()}
    assert 0.4 < len(run.updated) / len(sizes) < 0.7  # half of each layer, and all outside layers
    assert all(run.moved(name) == 0 for name in sizes.keys() - run.updated)
    # An adapter whose gradient was zero so far stays.
    assert sum(run.moved(name) > 0 for name in run.updated) > 0.8 * len(run.updated)
    moving = sum(sizes[name] for name in run.updated) / sum(sizes.values())
    assert run.rows[-1]["hft.moving"] == pytest.approx(moving)


def gem_acted(run: TwoTasks) -> None:
    assert run.strategy("gem").record() == {"memory_examples": [3, 3]}
    assert ["gem.violated" in row for row in run.rows] == [row in run.second() for row in run.rows]
    assert run.changed("gem") == [row.get("gem.violated", 0) > 0 for row in run.rows]
    assert any(run.changed("gem")) or not run.alone()


def agem_acted(run: TwoTasks) -> None:
    assert run.strategy("agem").record() == {"memory_examples": [4, 4]}
    assert ["agem.cosine" in row for row in run.rows] == [row in run.second() for row in run.rows]
    assert run.changed("agem") == [row.get("agem.cosine", 0) < 0 for row in run.rows]
    assert any(run.changed("agem")) or not run.alone()


def ewc_acted(run: TwoTasks) -> None:
    assert run.strategy("ewc").record()["fisher_examples"] == 4
    # Not in the first task, nor at the second's first step, where the weights are the anchor's.
    first = next(i for i, row in enumerate(run.rows) if row in run.second())
    assert run.changed("ewc") == [i > first for i in range(len(run.rows))]
    before, after = run.changes["ewc"][-1]
    ratio = (after - before).norm() / before.norm()
    assert run.rows[-1]["ewc.ratio"] == pytest.approx(ratio.item(), rel=1e-3)


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
