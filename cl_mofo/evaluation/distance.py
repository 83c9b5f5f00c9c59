"""How far a model has moved from where it began."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def distance(weights: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> float:
    """Return the mean over parameter tensors of ||theta - theta_0|| / ||theta_0||.

    MoFO paper (arXiv 2407.20999), appendix C.4. A tensor that starts at zero has no relative
    change and is left out.
    """
    changes = []
    for name, origin in start.items():
        norm = origin.norm().item()
        if norm > 0:
            moved = (weights[name].to("cpu", origin.dtype) - origin).norm().item()
            changes.append(moved / norm)
    return math.fsum(changes) / len(changes)
