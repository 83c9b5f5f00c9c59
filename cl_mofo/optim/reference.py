"""One step of MoFO on one tensor, slow and obviously right: what the fast one is held against."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from cl_mofo.optim.selection import Share


def reference_selection(exp_avg: Tensor, update_fraction: Share | None) -> Tensor:
    """Return the mask of the entries that move: all for None, else the top share by |m|.

    A stable sort keeps equal magnitudes in the order of their row-major indices (Remark 2).
    """
    if update_fraction is None:
        return torch.ones_like(exp_avg, dtype=torch.bool)
    k = math.ceil(Fraction(str(update_fraction)) * exp_avg.numel())
    order = exp_avg.abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(exp_avg.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view(exp_avg.shape)


def reference_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    update_fraction: Share | None = 0.05,
    decay: Literal["selected", "all"] = "selected",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (param, exp_avg, exp_avg_sq) after one step of MoFO (arXiv 2407.20999, Algorithm 1).

    With every entry selected it is torch.optim.AdamW(foreach=False, fused=False), bit for bit in
    float32 and float64.

    Args:
        param: any shape, float16, bfloat16, float32 or float64.
        grad: the gradient, of the same shape, finite.
        exp_avg: the first moment before the step; float64 for float64 parameters, else float32.
        exp_avg_sq: the second moment before the step, like `exp_avg`.
        step: the number of this step, counted from 1.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
        update_fraction: share of the entries that move; None for all.
        decay: whether "selected" entries decay, or "all".
    """
    beta1, beta2 = betas
    grad = grad.to(exp_avg.dtype)
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    exp_avg_sq = exp_avg_sq.mul(beta2).addcmul(grad, grad, value=1 - beta2)

    decayed = param.to(exp_avg.dtype) * (1 - lr * weight_decay)
    step_size = lr / (1 - beta1**step)
    denominator = exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps
    moved = decayed.addcdiv(exp_avg, denominator, value=-step_size)

    unselected = decayed.to(param.dtype) if decay == "all" else param
    selected = reference_selection(exp_avg, update_fraction)
    return torch.where(selected, moved.to(param.dtype), unselected), exp_avg, exp_avg_sq
