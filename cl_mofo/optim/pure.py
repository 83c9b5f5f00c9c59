"""The step in tensor operations of torch and numpy alone, for whatever a parameter may be."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cl_mofo.optim.step import move, update_moments
from cl_mofo.optim.work import Work, selections


class Pure:
    """Takes everything: any device, dtype and strides, whole tensors and parts of them."""

    def takes(self, item: Work) -> bool:
        """Say yes."""
        return True

    def step(self, items: Sequence[Work], discard: Tensor | None) -> None:
        """Take the step: all moments, then all selections, then all moves."""
        updated = []
        for item in items:
            undo = None if discard is None else discard.to(item.param.device, non_blocking=True)
            rule = update_moments(item.param, item.grad, item.state, item.options, undo)
            updated.append((item, rule, undo))
        for (item, rule, undo), chosen in zip(updated, selections(items), strict=True):
            move(item.param, item.state, item.options, rule, chosen, undo)
