"""A strategy that breaks steps, and sees that a broken one has changed nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from cl_mofo.checkpoint import save_state
from cl_mofo.strategy import Strategy


class Poison(Strategy):
    """Break some steps, by their number in the run from 0.

    Args:
        factors: what a step's loss is multiplied by on its way to the gradient.
        losses: steps whose logits, and so the loss itself, are NaN.
    """

    name = "poison"

    def __init__(
        self, factors: Mapping[int, float] | None = None, losses: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.factors, self.losses = factors or {}, frozenset(losses)
        self._hook: Any = None

    def before_step(self, loop: Any) -> None:
        if loop.global_step in self.losses:
            head = loop.model.get_output_embeddings()
            self._hook = head.register_forward_hook(lambda part, given, out: out * float("nan"))

    def on_loss(self, loop: Any, micro_batch: Any, loss: torch.Tensor) -> torch.Tensor:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        return loss * self.factors.get(loop.global_step, 1.0)


class Witness(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Keep what each step's gradients found, and what they left.

    Args:
        save_after: the step, counted from 1, after which the state is saved in `folder`.
    """

    def __init__(self, save_after: int | None = None, folder: Any = None) -> None:
        super().__init__()
        self.save_after, self.folder = save_after, folder
        self.same: list[bool] = []

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        if len(self.same) == strategy.global_step:  # the step's first pass
            self.same.append(False)
            self.before = fed(strategy)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.same[-1] = equal(self.before, fed(strategy))
        if strategy.global_step == self.save_after:
            save_state(self.folder, strategy.state_dict())


def fed(loop: Any) -> dict[str, Any]:
    """All that a step's gradients may change: weights, moments, strategies' states."""
    return copy.deepcopy(
        {
            **loop.engine.state_dict(),
            "strategies": {s.name: s.state_dict() for s in loop.strategies},
        }
    )


def equal(a: Any, b: Any) -> bool:
    """Compare nestings bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
