"""One step of MoFO on one tensor, fast: `reference.py` has the same step, obviously right.

It has two halves, for between them, where a tensor is spread over several ranks, lies a selection
that all of its parts take together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cl_mofo.optim.adamw import AdamW
from cl_mofo.optim.options import MOMENT_DTYPES
from cl_mofo.optim.shards import local

# On a CPU dense passes take this many entries at a time: temporaries stay small, and so does the
# number of times that threads have to meet.
_CHUNK = 1 << 20


def new_state(param: Tensor) -> dict[str, Tensor]:
    """Return the state before the first step: moments are row-major, whatever the parameter is."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=param.device),
        "exp_avg": zero_moment(param),
        "exp_avg_sq": zero_moment(param),
    }


def zero_moment(param: Tensor) -> Tensor:
    """Return zeros of a parameter's shape, in its moments' dtype, spread over ranks as it is."""
    dtype = MOMENT_DTYPES[param.dtype]
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.contiguous_format)


def update_moments(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    discard: Tensor | None = None,
) -> AdamW:
    """Update a tensor's moments in place, and return how its entries move.

    Args:
        param: any shape and strides, a dtype of `MOMENT_DTYPES`.
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
    rule = rule_of(step, group)
    for m, v, g in _chunks(param, *_moments(state), local(grad).reshape(-1)):
        rule.update_moments(m, v, g.to(m.dtype), discard)
    return rule


def rule_of(step: float | Tensor, group: dict[str, Any]) -> AdamW:
    """Return how entries move in step number `step`, with a parameter group's options."""
    return AdamW.at(
        step,
        lr=group["lr"],
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
    )


def move(
    param: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    rule: AdamW,
    chosen: Tensor | None,
    discard: Tensor | None = None,
) -> None:
    """Move a tensor's entries in place.

    Args:
        param: as for `update_moments`; no gradient is recorded.
        state: with its moments updated.
        group: the parameter group's options.
        rule: what `update_moments` returned.
        chosen: flat indices of the entries that move; None for all.
        discard: as for `update_moments`.
    """
    values = local(param).detach()
    flat = values.contiguous().view(-1)
    exp_avg, exp_avg_sq = _moments(state)
    if chosen is None:
        for p, m, v in _chunks(param, flat, exp_avg, exp_avg_sq):
            p.copy_(_unless(discard, rule.move(p, m, v), p))
    else:
        p, m, v = (t.index_select(0, chosen) for t in (flat, exp_avg, exp_avg_sq))
        moved = _unless(discard, rule.move(p, m, v), p)
        if group["decay"] == "all" and group["weight_decay"] != 0:
            for (p,) in _chunks(param, flat):
                p.copy_(_unless(discard, p.to(exp_avg.dtype).mul(rule.shrink), p))
        flat.index_copy_(0, chosen, moved.to(flat.dtype))
    if flat.data_ptr() != values.data_ptr():  # the parameter is not contiguous, and `flat` a copy
        values.copy_(flat.view(values.shape))


def _moments(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return local(state["exp_avg"]).view(-1), local(state["exp_avg_sq"]).view(-1)


def _chunks(param: Tensor, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    if param.device.type != "cpu" or tensors[0].numel() <= _CHUNK:
        return [tensors]
    return zip(*(torch.split(t, _CHUNK) for t in tensors), strict=True)


def _unless(discard: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if discard is None else torch.where(discard, old, new)
