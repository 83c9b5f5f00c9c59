"""The parameters of one step, and which of their entries move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cl_mofo.optim.selection import count, largest
from cl_mofo.optim.sharded import largest_sharded
from cl_mofo.optim.shards import Shards, local


@dataclass(frozen=True)
class Work:
    """A parameter that a step is for.

    Args:
        options: its group's.
        param: the parameter, or this rank's part of parameters.
        grad: its gradient.
        shards: which tensors it holds.
        state: its "step", "exp_avg" and "exp_avg_sq"; empty before its first step.
    """

    options: dict[str, Any]
    param: Tensor
    grad: Tensor
    shards: Shards
    state: dict[str, Tensor]

    @cached_property
    def counts(self) -> list[int] | None:
        """How many entries of each of its tensors move; None if all of them do."""
        fraction = self.options["update_fraction"]
        pieces = self.shards.pieces
        if fraction is None:
            return None
        counts = [count(fraction, piece.size) for piece in pieces]
        return None if counts == [piece.size for piece in pieces] else counts


def selections(work: Sequence[Work]) -> Iterator[Tensor | None]:
    """Yield for each parameter the flat indices of its entries that move; None for all.

    Those of tensors that are spread over ranks are found together, before the first is needed.

    Args:
        work: parameters, in an order that is the same on all ranks, with this step's moments.
    """
    spread: dict[Any, list[tuple[Tensor, int, int]]] = {}
    for item in work:
        counts = item.counts
        if counts is not None and item.shards.ranks is not None:
            exp_avg = local(item.state["exp_avg"])
            spread.setdefault((item.shards.ranks, exp_avg.dtype), []).extend(
                (piece.of(exp_avg), k, piece.size)
                for piece, k in zip(item.shards.pieces, counts, strict=True)
            )
    found = {}
    for key, held in spread.items():
        parts, ks, sizes = zip(*held, strict=True)
        found[key] = largest_sharded(parts, ks, sizes, key[0])
    for item in work:
        counts, pieces = item.counts, item.shards.pieces
        if counts is None:
            yield None
            continue
        exp_avg = item.state["exp_avg"]
        indices = found.get((item.shards.ranks, exp_avg.dtype))
        if indices is None:
            indices = map(largest, (piece.of(exp_avg) for piece in pieces), counts)
        yield torch.cat([next(indices) + piece.start for piece in pieces])
