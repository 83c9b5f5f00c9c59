"""The update that ends a step: learning rate, clipping, the optimizer, and what is skipped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cl_mofo.data.stages import schedule_of
from cl_mofo.errors import TrainingError
from cl_mofo.memory import explained
from cl_mofo.remedies import moments
from cl_mofo.schedule import lr_factor
from cl_mofo.strategy import Strategy
from cl_mofo.transfer import Arriving

if TYPE_CHECKING:
    from cl_mofo.loop import Loop

MOST_ROWS = 64
"""How many rows of a batch a message names."""


def update(loop: Loop, **kwargs: Any) -> None:
    """End a step: strategies act on the gradient, it is clipped, and the optimizer steps.

    A step whose loss or gradient is not finite is skipped: `loop.fault` then says what was found.
    Strategies never see such a gradient, and no weight and no moment changes; where it became so
    only by what they did to it, they have seen it whole.

    On an accelerator whose optimizer can leave a step by itself, and with no strategy that acts
    after the gradients, the host does not wait: it hears of a step while the next is computed, by
    `settle`.

    Raises:
        TrainingError: more steps of the task were skipped than may be.
    """
    _set_learning_rate(loop)
    outcome = Outcome(loop)
    if loop.deferred:
        settle(loop)  # the step before; the device has this one's passes to go on with
        loop.outcome = outcome
        _move(loop, unless=outcome.broken, **kwargs)
        return
    _hear(loop, outcome)
    if loop.fault is None:
        for strategy in loop.acting:
            strategy.on_gradients(loop)
        if _act(loop.acting, "on_gradients"):
            _hear(loop, Outcome(loop))
    if loop.fault is None:
        _move(loop, **kwargs)
    else:
        loop.engine.discard_gradients()
        _skip(loop)


def settle(loop: Loop) -> None:
    """Wait for the last step's outcome, if nobody has, and count the step if it was left.

    Raises:
        TrainingError: more steps of the task were skipped than may be.
    """
    if loop.outcome is not None and not loop.outcome.heard:
        _hear(loop, loop.outcome)
        if loop.fault is not None:
            _skip(loop)


def waits(strategies: Iterable[Strategy]) -> bool:
    """Tell whether a strategy acts after a step's gradients, and must know that they are good."""
    return _act(strategies, "on_gradients") or _act(strategies, "after_step")


def _act(strategies: Iterable[Strategy], hook: str) -> bool:
    return any(getattr(type(s), hook) is not getattr(Strategy, hook) for s in strategies)


class Outcome:
    """A step's loss and gradient norm, on their way from the device.

    Args:
        loop: between a step's backward passes and its update.
    """

    def __init__(self, loop: Loop) -> None:
        self.epoch, self.batch, self.step = loop.epoch, loop.batch, loop.step
        self.norm = loop.engine.norm()
        """[]: of all gradients together, on the device."""
        self.heard = False
        self.names: list[str] = []
        """Of gradients that are not finite, as far as that was looked for."""
        figures = torch.stack([loop.step_loss.to(self.norm), self.norm])
        self.broken = ~figures.isfinite().all()
        """[]: whether either is not finite, on the device."""
        self._figures = Arriving(figures)

    def read(self) -> tuple[float, float]:
        """Wait for the loss, in nats, and the norm."""
        loss, norm = self._figures.read()
        return loss, norm

    @property
    def fault(self) -> str | None:
        """What of the step is not finite."""
        loss, norm = self.read()
        if not math.isfinite(loss):
            return f"the loss is not finite ({loss})"
        if math.isfinite(norm):
            return None
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        of = f"the gradient of {', '.join(self.names[:3])}" if self.names else "the gradients' norm"
        return f"{of}{more} is not finite (loss {loss:.4g})"


def _hear(loop: Loop, outcome: Outcome) -> None:
    """Note in the loop what became of a step, the same on all ranks."""
    loop.heard_loss, loop.grad_norm = outcome.read()
    outcome.heard = True
    gradients_are_there = not loop.deferred
    if gradients_are_there and math.isfinite(loop.heard_loss) and not math.isfinite(loop.grad_norm):
        outcome.names = _where_not_finite(loop, loop.gradients())
    loop.outcome, loop.fault = outcome, outcome.fault


def _move(loop: Loop, unless: Tensor | None = None, **kwargs: Any) -> None:
    assert loop.outcome is not None
    loop._before_update(**kwargs)
    limit = loop.recipe.optimizer.max_grad_norm
    if limit is not None:
        clipped = (limit / (loop.outcome.norm + 1e-6)).clamp(max=1.0)  # as torch clips
        for gradient in loop.gradients().values():
            gradient.mul_(clipped.to(gradient.device))
    with explained(moments(sum(loop.sizes.values())), loop.remedies.holding):
        loop.engine.step(unless)
    loop._after_update(**kwargs)


def _set_learning_rate(loop: Loop) -> None:
    settings = loop.recipe.optimizer
    first, steps = schedule_of(loop.stages, loop.epoch, settings.batch_size)
    warmup = int(settings.warmup_ratio * steps)
    factor = lr_factor(settings.schedule, loop.step - first, steps, warmup)
    loop.lr = settings.lr * factor
    for group in loop.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def _skip(loop: Loop) -> None:
    allowed = loop.recipe.training.max_skipped_steps
    fewer_than_half = (loop.total_steps - 1) // 2
    if loop.skipped_in_task >= min(allowed, fewer_than_half):
        raise TrainingError(_too_many(loop, allowed, fewer_than_half))
    loop.skipped += 1
    loop.skipped_in_task += 1


def _too_many(loop: Loop, allowed: int, fewer_than_half: int) -> str:
    assert loop.outcome is not None
    reason = f"training.max_skipped_steps is {allowed}"
    if fewer_than_half < allowed:
        reason = f"a task of {loop.total_steps} steps may skip {fewer_than_half}"
    float32 = ", or compute in float32 (model.compute_dtype)"
    return (
        f"task {loop.plan.task.name}, step {loop.outcome.step + 1} of {loop.total_steps}: "
        f"{loop.fault}. "
        f"Nothing was updated. Steps of this task skipped before: {loop.skipped_in_task}; "
        f"{reason}. {_rows(loop, loop.outcome)}. Lower optimizer.lr"
        f"{'' if loop.language_model.compute_dtype == torch.float32 else float32}; if it is always "
        f"the same rows, look at them"
    )


def _rows(loop: Loop, outcome: Outcome) -> str:
    """Say which rows of the task's training split a step's batch held."""
    index = {id(example): number for number, example in enumerate(loop.examples)}
    batch = loop.drawn(outcome.epoch)[outcome.batch]
    rows = sorted(index[id(example)] for example in batch if id(example) in index)
    others = len(batch) - len(rows)
    told = ", ".join(map(str, rows[:MOST_ROWS])) or "none"
    if len(rows) > MOST_ROWS:
        told += f" and {len(rows) - MOST_ROWS} more"
    beside = f", and {others} other examples" if others else ""
    return f"Its batch held of the task's training rows, counted from 0: {told}{beside}"


def refuse_broken_weights(loop: Loop) -> None:
    """Catch what a task's last step did to the weights: no later gradient would show it.

    Raises:
        TrainingError: a weight is not finite.
    """
    broken = _where_not_finite(loop, loop.parameters())
    if broken:
        raise TrainingError(
            f"task {loop.plan.task.name}: after its last step {broken[0]} is not finite. "
            f"Lower optimizer.lr"
        )


def _where_not_finite(loop: Loop, tensors: Mapping[str, Tensor]) -> list[str]:
    counts = torch.stack([(~tensor.isfinite()).sum() for tensor in tensors.values()])
    found = loop.over_shards(counts).tolist()
    return [name for name, count in zip(tensors, found, strict=True) if count]
