"""The update that ends a step: learning rate, clipping, the optimizer, and what is skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cl_mofo.data.stages import schedule_of
from cl_mofo.errors import TrainingError
from cl_mofo.memory import explained
from cl_mofo.remedies import moments
from cl_mofo.schedule import lr_factor
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    from cl_mofo.loop import Loop

MOST_ROWS = 64
"""How many rows of a batch a message names."""


def update(loop: Loop, **kwargs: Any) -> None:
    """End a step: strategies act on the gradient, it is clipped, and the optimizer steps.

    A step whose loss or gradient is not finite is skipped: `loop.fault` then says what was found.
    Strategies never see such a gradient, and no weight and no moment changes; where it became so
    only by what they did to it, they have seen it whole.

    Raises:
        TrainingError: more steps of the task were skipped than may be.
    """
    _set_learning_rate(loop)
    norm, loop.fault = _look(loop)
    if loop.fault is None:
        for strategy in loop.acting:
            strategy.on_gradients(loop)
        loop._before_update(**kwargs)
        if any(type(s).on_gradients is not Strategy.on_gradients for s in loop.acting):
            norm, loop.fault = _look(loop)
    if loop.fault is not None:
        _skip(loop)
        return
    limit = loop.recipe.optimizer.max_grad_norm
    if limit is not None:
        clipped = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch clips
        for gradient in loop.gradients().values():
            gradient.mul_(clipped.to(gradient.device))
    with explained(moments(sum(loop.sizes.values())), loop.remedies.holding):
        loop.engine.step()
    loop._after_update(**kwargs)


def _set_learning_rate(loop: Loop) -> None:
    settings = loop.recipe.optimizer
    first, steps = schedule_of(loop.stages, loop.epoch, settings.batch_size)
    warmup = int(settings.warmup_ratio * steps)
    factor = lr_factor(settings.schedule, loop.step - first, steps, warmup)
    loop.lr = settings.lr * factor
    for group in loop.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def _look(loop: Loop) -> tuple[Tensor, str | None]:
    """Return the gradient's norm [], and what of the step is not finite, the same on all ranks."""
    norm = loop.engine.norm()
    loop.grad_norm, loss = norm.item(), loop.step_loss.item()
    if not math.isfinite(loss):
        return norm, f"the loss is not finite ({loss})"
    if math.isfinite(loop.grad_norm):
        return norm, None
    names = _where_not_finite(loop, loop.gradients())
    what = f"the gradient of {', '.join(names[:3])}" if names else "the gradients' norm"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return norm, f"{what}{more} is not finite (loss {loss:.4g})"


def _skip(loop: Loop) -> None:
    loop.engine.discard_gradients()
    allowed = loop.recipe.training.max_skipped_steps
    fewer_than_half = (loop.total_steps - 1) // 2
    if loop.skipped_in_task >= min(allowed, fewer_than_half):
        raise TrainingError(_too_many(loop, allowed, fewer_than_half))
    loop.skipped += 1
    loop.skipped_in_task += 1


def _too_many(loop: Loop, allowed: int, fewer_than_half: int) -> str:
    reason = f"training.max_skipped_steps is {allowed}"
    if fewer_than_half < allowed:
        reason = f"a task of {loop.total_steps} steps may skip {fewer_than_half}"
    float32 = ", or compute in float32 (model.compute_dtype)"
    return (
        f"task {loop.plan.task.name}, step {loop.step + 1} of {loop.total_steps}: {loop.fault}. "
        f"Nothing was updated. Steps of this task skipped before: {loop.skipped_in_task}; "
        f"{reason}. {_rows(loop)}. Lower optimizer.lr"
        f"{'' if loop.language_model.compute_dtype == torch.float32 else float32}; if it is always "
        f"the same rows, look at them"
    )


def _rows(loop: Loop) -> str:
    """Say which rows of the task's training split the present batch holds."""
    index = {id(example): number for number, example in enumerate(loop.examples)}
    batch = loop.drawn(loop.epoch)[loop.batch]
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
