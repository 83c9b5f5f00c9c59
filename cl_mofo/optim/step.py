"""One step of MoFO on one tensor, fast: `reference.py` has the same step, obviously right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cl_mofo.optim.adamw import AdamW
from cl_mofo.optim.options import MOMENT_DTYPES
from cl_mofo.optim.selection import count, largest

# On a CPU dense passes take this many entries at a time: temporaries stay small, and so does the
# number of times that threads have to meet.
_CHUNK = 1 << 20


def new_state(param: Tensor) -> dict[str, Tensor]:
    """Return the state before the first step: moments are row-major, whatever the parameter is."""
    dtype = MOMENT_DTYPES[param.dtype]
    return {
        "step": torch.zeros((), dtype=torch.float32, device=param.device),
        "exp_avg": torch.zeros(param.shape, dtype=dtype, device=param.device),
        "exp_avg_sq": torch.zeros(param.shape, dtype=dtype, device=param.device),
    }


def advance(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    discard: Tensor | None = None,
) -> None:
    """Step one tensor in place, with its state.

    Args:
        param: any shape and strides, a dtype of `MOMENT_DTYPES`; no gradient is recorded.
        grad: its gradient, dense and, unless `discard` is true, finite.
        state: as of `new_state`.
        group: the parameter group's options.
        discard: 0-d bool on the parameter's device; where it is true nothing changes. With it, the
            host never waits for the device, nor does it know whether the step was taken.
    """
    step: float | Tensor
    if discard is None:
        step = state["step"].add_(1).item()
    else:
        step = state["step"].add_(~discard).double()
    names = ("lr", "betas", "eps", "weight_decay")
    rule = AdamW.at(step, **{name: group[name] for name in names})

    exp_avg, exp_avg_sq = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
    chunk = _CHUNK if param.device.type == "cpu" else param.numel()
    for m, v, g in _chunks(chunk, exp_avg, exp_avg_sq, grad.reshape(-1)):
        rule.update_moments(m, v, g.to(m.dtype), discard)

    flat = param.detach().contiguous().view(-1)
    fraction = group["update_fraction"]
    k = param.numel() if fraction is None else count(fraction, param.numel())
    if k == param.numel():
        for p, m, v in _chunks(chunk, flat, exp_avg, exp_avg_sq):
            p.copy_(_unless(discard, rule.move(p, m, v), p))
    else:
        chosen = largest(exp_avg, k)
        p, m, v = (t.index_select(0, chosen) for t in (flat, exp_avg, exp_avg_sq))
        moved = _unless(discard, rule.move(p, m, v), p)
        if group["decay"] == "all" and group["weight_decay"] != 0:
            for (p,) in _chunks(chunk, flat):
                p.copy_(_unless(discard, p.to(exp_avg.dtype).mul(rule.shrink), p))
        flat.index_copy_(0, chosen, moved.to(flat.dtype))
    if flat.data_ptr() != param.data_ptr():  # the parameter is not contiguous, and `flat` a copy
        param.copy_(flat.view(param.shape))


def _chunks(size: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    if tensors[0].numel() <= size:
        return [tensors]
    return zip(*(torch.split(t, size) for t in tensors), strict=True)


def _unless(discard: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if discard is None else torch.where(discard, old, new)
