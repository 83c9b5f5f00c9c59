"""The update that ends a step: learning rate, clipping, the optimizer, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_mofo.data.stages import schedule_of
from cl_mofo.errors import TrainingError
from cl_mofo.schedule import lr_factor

if TYPE_CHECKING:
    from cl_mofo.loop import Loop


def update(loop: Loop) -> None:
    """Set the learning rate, look for non-finite gradients, clip, and step.

    Raises:
        TrainingError: a gradient is not finite; no weight and no moment has changed.
    """
    settings = loop.recipe.optimizer
    first, steps = schedule_of(loop.stages, loop.epoch, settings.batch_size)
    warmup = int(settings.warmup_ratio * steps)
    factor = lr_factor(settings.schedule, loop.step - first, steps, warmup)
    loop.lr = settings.lr * factor
    for group in loop.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    norm = loop.engine.norm()
    loop.grad_norm = norm.item()
    if not math.isfinite(loop.grad_norm):
        raise TrainingError(_non_finite(loop))
    if settings.max_grad_norm is not None:
        clipped = (settings.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch clips
        for gradient in loop.gradients().values():
            gradient.mul_(clipped.to(gradient.device))
    loop.engine.step()


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


def _non_finite(loop: Loop) -> str:
    names = _where_not_finite(loop, loop.gradients())
    where = f"task {loop.plan.task.name}, step {loop.step + 1} of {loop.total_steps}"
    what = f"the gradient of {', '.join(names[:3])}" if names else "the gradients' norm"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{where}: {what}{more} is not finite (loss {loop.step_loss.item():.4g}). Nothing was "
        f"updated. Lower optimizer.lr, or compute in float32 (model.compute_dtype)"
    )
