"""What ranks share: tensors of which each holds consecutive entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Parts(dict[str, "torch.Tensor"]):
    """Tensors by a parameter's name, each of the shape of `Loop.parameters()[name]`.

    Where several ranks hold parts of a parameter, these are of the same parts: a checkpoint can
    then give other parts to another number of ranks.
    """


@dataclass(frozen=True)
class Span:
    """Consecutive entries of a tensor, in row-major order.

    Args:
        start: the first one's number, from 0.
        numel: how many.
    """

    start: int
    numel: int
