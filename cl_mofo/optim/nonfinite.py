"""Whether a step may be taken: no gradient may hold a NaN or an infinity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_mofo.optim.native import library
from cl_mofo.optim.shards import any_rank
from cl_mofo.transfer import Arriving


class NonFiniteGradientError(FloatingPointError):
    """Gradients held a NaN or an infinity, and the step was discarded.

    Args:
        names: the parameters concerned, at least one.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.names = tuple(names)

    def __str__(self) -> str:
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        return (
            f"the gradient of {', '.join(self.names[:3])}{more} is not finite. The step was "
            "discarded: no parameter, moment or counter has changed. Look for an overflow in the "
            "loss, or lower the learning rate"
        )


class GradientCheck:
    """Looks for non-finite gradients without waiting for their device.

    Args:
        gradients: pairs of a parameter's name and its gradient, dense, on any devices.
        ranks: process groups whose ranks hold other parts of the same gradients, in the same order;
            what one finds, all find.
    """

    def __init__(self, gradients: Sequence[tuple[str, Tensor]], ranks: Sequence[Any] = ()) -> None:
        self._names = [name for name, _ in gradients]
        home = next((g.device for _, g in gradients if g.device.type != "cpu"), torch.device("cpu"))
        found = _are_finite([grad for _, grad in gradients])
        finite = [flag.to(home, non_blocking=True) for flag in found]
        flags = ~torch.stack(finite) if finite else torch.zeros(0, dtype=torch.bool)
        for group in ranks:
            flags = any_rank(flags, group)
        self.found = flags.any()
        """0-d bool on the gradients' device (the first that is no CPU): is any not finite?"""
        self._flags = Arriving(flags)

    def raise_if_found(self) -> None:
        """Wait for the answer.

        Raises:
            NonFiniteGradientError: a gradient is not finite.
        """
        names = [n for n, bad in zip(self._names, self._flags.read(), strict=True) if bad]
        if names:
            raise NonFiniteGradientError(names)


def _are_finite(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Tell it of each, as a 0-d bool on its device."""
    found: dict[int, Tensor] = {}
    elsewhere: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, grad in enumerate(gradients):
        if grad.device.type == "cpu" or not grad.numel():
            found[number] = _is_finite(grad)
        else:
            elsewhere.setdefault((grad.device, grad.dtype), []).append(number)
    for numbers in elsewhere.values():
        alike = _are_finite_together([gradients[number] for number in numbers])
        found |= dict(zip(numbers, alike, strict=True))
    return [found[number] for number in range(len(gradients))]


def _are_finite_together(gradients: list[Tensor]) -> tuple[Tensor, ...]:
    """Tell it in a few launches, of gradients of one device and dtype, none empty."""
    largest = torch._foreach_norm(gradients, math.inf)  # a NaN comes through, and nothing overflows
    return torch.stack(largest).isfinite().unbind()


def _is_finite(grad: Tensor) -> Tensor:
    if not grad.numel():
        return torch.ones((), dtype=torch.bool, device=grad.device)
    if grad.device.type == "cpu" and grad.is_contiguous() and (fast := library(grad.dtype)):
        return torch.tensor(fast.finite(grad))
    low, high = torch.aminmax(grad)  # one pass, no temporary, and a NaN comes through
    return torch.isfinite(low) & torch.isfinite(high)
