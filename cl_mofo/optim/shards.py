"""What an optimizer holds of tensors that are spread over several ranks.

Two forms are known. A `DTensor` (FSDP2, `fully_shard`) says itself how it is spread. A flat
parameter into which parts of many tensors are packed (DeepSpeed's ZeRO) has to be described, by the
`Piece`s that lie in it. In both, ranks hold consecutive parts of a tensor's row-major entries, in
the order of the ranks; a part may be empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """This rank's part of a tensor, within a flat parameter.

    Args:
        name: the tensor's.
        start: where the part begins in the flat parameter.
        numel: how many entries it has, at least 0.
        size: how many entries the whole tensor has.
    """

    name: str
    start: int
    numel: int
    size: int

    def of(self, flat: Tensor) -> Tensor:
        """Return the part, given the flat parameter or a tensor of its shape."""
        return flat.view(-1)[self.start : self.start + self.numel]


@dataclass(frozen=True)
class Shards:
    """What a parameter holds, and with whom it shares.

    Args:
        pieces: every tensor that the flat parameters of the ranks hold, in the same order on all
            ranks, also those of which this rank has nothing.
        ranks: the process group over which each tensor is spread; None where it is whole here.
    """

    pieces: tuple[Piece, ...]
    ranks: Any = None


def local(tensor: Tensor) -> Tensor:
    """Return a tensor, or of a DTensor this rank's part."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def shards_of(name: str, param: Tensor) -> Shards:
    """Return what a parameter holds that nobody has described.

    Raises:
        ValueError: a DTensor is spread along another dimension than its first.
    """
    ranks = _ranks(name, param)
    return Shards((Piece(name, 0, local(param).numel(), param.numel()),), ranks)


def _ranks(name: str, param: Tensor) -> Any:
    if not hasattr(param, "to_local"):
        return None
    from torch.distributed.tensor import Replicate, Shard

    dtensor: Any = param
    mesh, placements = dtensor.device_mesh, dtensor.placements
    spread = [i for i, placement in enumerate(placements) if placement != Replicate()]
    if not spread:
        return None
    if len(spread) > 1 or placements[spread[0]] != Shard(0):
        raise ValueError(
            f"{name} is a DTensor placed {placements}; MoFO takes those that one dimension of the "
            f"mesh shards along their first dimension (Shard(0)), as fully_shard does"
        )
    return mesh.get_group(spread[0])


def any_rank(flags: Tensor, ranks: Any) -> Tensor:
    """Return which flags are set on any of the ranks.

    Args:
        flags: bool, of the same shape on all.
        ranks: a process group.
    """
    summed = flags.to(torch.uint8)
    torch.distributed.all_reduce(summed, torch.distributed.ReduceOp.MAX, group=ranks)
    return summed.bool()
