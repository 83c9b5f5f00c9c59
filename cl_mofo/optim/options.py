"""What a parameter group of MoFO may say."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Real
from typing import Any

import torch
from torch import Tensor

OPTIONS = frozenset({"lr", "betas", "eps", "weight_decay", "update_fraction", "decay"})
DECAYS = ("selected", "all")

MOMENT_DTYPES = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
"""The dtypes a parameter may have, and that of its moments and of the arithmetic."""


def check_options(group: dict[str, Any]) -> None:
    """Check a group's options; an `update_fraction` that JSON cannot hold becomes text.

    Raises:
        ValueError: an option is out of its range; the message has its value.
    """
    _check_number("lr", group["lr"])
    _check_number("eps", group["eps"])
    _check_number("weight_decay", group["weight_decay"])
    betas = group["betas"]
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}")
    for index, beta in enumerate(betas):
        _check_number(f"betas[{index}]", beta, below=1)
    if group["decay"] not in DECAYS:
        raise ValueError(f"decay must be 'selected' or 'all', got {group['decay']!r}")
    group["update_fraction"] = _as_written(group["update_fraction"])


def check_parameter(name: str, param: object) -> None:
    """Check that a parameter is one that MoFO can optimize.

    Raises:
        ValueError: it is complex or of another dtype than `MOMENT_DTYPES`.
    """
    if isinstance(param, Tensor) and param.dtype not in MOMENT_DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in MOMENT_DTYPES)
        raise ValueError(f"{name} is {param.dtype}; MoFO takes parameters of {known}")


def _check_number(name: str, value: object, below: float = math.inf) -> None:
    if not isinstance(value, Real) or not 0 <= float(value) < below:
        wanted = "finite" if below == math.inf else f"below {below}"
        raise ValueError(f"{name} must be a number, at least 0 and {wanted}, got {value!r}")


def _as_written(update_fraction: Any) -> float | str | None:
    if update_fraction is None:
        return None
    try:
        valid = not isinstance(update_fraction, bool) and 0 < Fraction(str(update_fraction)) <= 1
    except (ValueError, ZeroDivisionError):
        valid = False
    if not valid:
        raise ValueError(
            f"update_fraction must be above 0 and at most 1, or None for unfiltered, "
            f"got {update_fraction!r}"
        )
    return update_fraction if isinstance(update_fraction, int | float) else str(update_fraction)
