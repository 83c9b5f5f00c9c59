"""The learning rate within a task, as a factor of its peak."""

from __future__ import annotations

import math


def lr_factor(schedule: str, step: int, total: int, warmup: int = 0) -> float:
    """Return the factor for one step.

    The first step after the warm-up runs at the peak; cosine and linear approach zero after the
    task's last step.

    Args:
        schedule: "cosine", "linear" or "constant".
        step: steps taken in this task before this one, from 0.
        total: steps of the task.
        warmup: steps over which the rate rises linearly: (step + 1) / (warmup + 1).

    Returns:
        a factor in [0, 1].
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "constant":
        return 1.0
    raise ValueError(f"schedule '{schedule}' is none of cosine, linear, constant")
