"""How an entry moves: AdamW's arithmetic (arXiv 1711.05101), in torch.optim.AdamW's order.

    m <- m + (1 - beta1) (g - m)
    v <- beta2 v + (1 - beta2) g^2
    theta <- (1 - lr * weight_decay) theta
             - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

Every operation is elementwise, so whole tensors, chunks and gathered entries give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamW:
    """The coefficients of one step; those that depend on the step counter may be 0-d tensors."""

    beta1: float
    beta2: float
    eps: float
    shrink: float
    """1 - lr * weight_decay"""
    step_size: float | Tensor
    """lr / (1 - beta1^t)"""
    correction: float | Tensor
    """sqrt(1 - beta2^t)"""

    @classmethod
    def at(
        cls,
        step: float | Tensor,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> AdamW:
        """Return the coefficients of step number `step`, counted from 1.

        A 0-d float64 tensor keeps the number on its device.
        """
        beta1, beta2 = betas
        return cls(
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            shrink=1 - lr * weight_decay,
            step_size=lr / (1 - beta1**step),
            correction=(1 - beta2**step) ** 0.5,
        )

    def update_moments(
        self, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, discard: Tensor | None
    ) -> None:
        """Update both moments in place, all entries, unless the 0-d bool `discard` is true."""
        if discard is None:
            exp_avg.lerp_(grad, 1 - self.beta1)
            exp_avg_sq.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
        else:
            first = exp_avg.lerp(grad, 1 - self.beta1)
            torch.where(discard, exp_avg, first, out=exp_avg)
            second = exp_avg_sq.mul(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            torch.where(discard, exp_avg_sq, second, out=exp_avg_sq)

    def move(self, values: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
        """Return where the entries go: `values` decayed and updated, in the moments' dtype."""
        denominator = exp_avg_sq.sqrt().div_(self.correction).add_(self.eps)
        decayed = values.to(exp_avg.dtype).mul(self.shrink)
        return decayed.sub_(exp_avg.mul(self.step_size).div_(denominator))
