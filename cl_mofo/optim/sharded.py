"""Which entries of a tensor move when it is spread over ranks: the same as `selection` says.

A radix search for the magnitude of the k-th largest entry, for all tensors at once. Magnitudes (31
bits in float32, 63 in float64) are compared from the top, at most 11 bits at a time:

    for each group of bits:
        count, per tensor, how many of this rank's candidates have each value of these bits
        all_reduce the counts, [tensors, 2**bits]
        per tensor, the boundary is the value at which the count from the top reaches k:
        what lies above it is selected, and k falls by as many; what lies in it stays a candidate

The boundaries put together are the threshold. Every entry above it is selected, and of those equal
to it the k that are left. All ranks then tell how many such they have (all_gather), and take the
first of their own in turn: ranks lie in the order of the indices, and of equal magnitudes the
smallest indices are selected.

The result is exact. What is sent grows with the number of tensors, not with their sizes: `traffic`.
Time is three readings of the parts. Memory is a few chunks and a copy of the candidates left by the
first group of bits: they agree with the threshold in exponent and, in float32, three more bits, so
they are a small share of a momentum, but all of a tensor of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

# Without its sign bit, a float's pattern read as an integer grows with it. It is exact: -0.0 is 0,
# and subnormals are never flushed.
_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
_MOST_BITS = 11
_CHUNK = 1 << 20  # entries read at a time, which bounds the scratch
_WIDE = 1 << 31  # from this size on, an int32 could not count a tensor's entries


class Traffic(NamedTuple):
    """What one call of `largest_sharded` sends, as each rank sees it."""

    collectives: int
    reduced: int
    """Bytes of the buffers that are all-reduced."""
    gathered: int
    """Bytes of the buffer that all-gather fills; the rank itself puts in its share of it."""


def traffic(
    tensors: int, ranks: int, dtype: torch.dtype = torch.float32, *, wide: bool = False
) -> Traffic:
    """Return what `largest_sharded` sends for this many tensors, whatever their sizes.

    In float32 (bits 11 + 10 + 10) 4 collectives, of 16 KiB per tensor and then 4 bytes per tensor
    and rank; in float64 (three times 11 and three times 10) 7, of 36 KiB.

    Args:
        tensors: how many the call is for, at least 1.
        ranks: how many share them.
        dtype: float32 or float64.
        wide: whether a tensor has 2**31 entries or more; counts then take 8 bytes instead of 4.
    """
    groups, width = _groups_of_bits(dtype), 8 if wide else 4
    reduced = tensors * sum(1 << bits for bits in groups) * width
    return Traffic(len(groups) + 1, reduced, tensors * ranks * width)


def largest_sharded(
    parts: Sequence[Tensor],
    counts: Sequence[int],
    sizes: Sequence[int],
    group: dist.ProcessGroup | None,
) -> Iterator[Tensor]:
    """Select each tensor's entries with the largest |value|, ties to the smallest index.

    A collective call: all ranks make it with the same tensors in the same order. It returns when
    the last collective is done; indices are found as they are asked for, from the parts, whose
    values must not have changed.

    Args:
        parts: what this rank has of each tensor, following what the rank before it has, possibly
            nothing. One-dimensional, contiguous, without NaN; float32 or float64, of one dtype and
            on one device throughout.
        counts: how many entries to select in each whole tensor, between 0 and its size.
        sizes: how many entries each whole tensor has.
        group: the ranks that share the tensors; None for all.

    Returns:
        For each tensor in turn the selected indices within this rank's part, ascending: int64, on
        the device of the part.

    Raises:
        ValueError: before any collective, a count is not between 0 and the size, or the parts are
            of another dtype or of several; on all ranks, a tensor's parts do not add up to its
            size.
    """
    for number, (_, k, size) in enumerate(zip(parts, counts, sizes, strict=True)):
        if not 0 <= k <= size:
            raise ValueError(f"tensor {number}: cannot select {k} of {size} entries")
    if not parts:
        return iter(())
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1 or not dtypes <= _INTEGER.keys():
        raise ValueError(
            f"parts must be all float32 or all float64; found {sorted(map(str, dtypes))}"
        )
    return _indices(parts, *_search(parts, counts, sizes, group))


def _search(
    parts: Sequence[Tensor],
    counts: Sequence[int],
    sizes: Sequence[int],
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Return per tensor the threshold, as an integer, and how many of its equals to take here."""
    device = parts[0].device
    dtype = torch.int64 if max(sizes) >= _WIDE else torch.int32
    candidates = [part.view(_INTEGER[part.dtype]) for part in parts]
    threshold = torch.zeros(len(parts), dtype=torch.int64, device=device)
    wanted = torch.tensor(counts, dtype=torch.int64, device=device)
    groups = _groups_of_bits(parts[0].dtype)
    for number, bits in enumerate(groups):
        shift = sum(groups[number + 1 :])
        own = torch.stack([_histogram(entries, shift, bits) for entries in candidates]).to(dtype)
        total = _all_reduced(own, group)
        if number == 0:
            _check_sizes(total, sizes)
        boundary, wanted = _boundary(total, wanted)
        threshold = threshold << bits | boundary
        if shift:
            candidates = [
                _inside(entries, shift, bits, value)
                for entries, value in zip(candidates, boundary, strict=True)
            ]
    ties = _all_gathered(own.gather(1, boundary[:, None])[:, 0], group)
    return threshold, wanted - ties[: dist.get_rank(group)].sum(0)


def _indices(parts: Sequence[Tensor], thresholds: Tensor, ties_left: Tensor) -> Iterator[Tensor]:
    """Yield for each part where it exceeds its threshold or, while any are left, equals it."""
    for part, threshold, left in zip(parts, thresholds, ties_left, strict=True):
        entries = part.view(_INTEGER[part.dtype])
        found = []
        for number, chunk in enumerate(_chunks(entries)):
            magnitudes = chunk & torch.iinfo(chunk.dtype).max
            index = _where(magnitudes >= threshold)
            tied = magnitudes[index] == threshold
            found.append(index[~tied | (tied.cumsum(0) <= left)] + number * _CHUNK)
            left = left - tied.sum()
        yield torch.cat(found)


def _groups_of_bits(dtype: torch.dtype) -> list[int]:
    """Split a magnitude's bits into the fewest groups of at most `_MOST_BITS`, from the top."""
    bits = torch.iinfo(_INTEGER[dtype]).bits - 1
    number = -(-bits // _MOST_BITS)
    return [-(-(bits - i) // number) for i in range(number)]


def _chunks(entries: Tensor) -> list[Tensor]:
    """Split the entries, into one chunk at least."""
    return [entries[i : i + _CHUNK] for i in range(0, max(len(entries), 1), _CHUNK)]


def _histogram(entries: Tensor, shift: int, bits: int) -> Tensor:
    values = (_values(chunk, shift, bits) for chunk in _chunks(entries))
    return torch.stack([torch.bincount(v, minlength=1 << bits) for v in values]).sum(0)


def _inside(entries: Tensor, shift: int, bits: int, value: Tensor) -> Tensor:
    """Return the entries whose group of bits has this value."""
    found = (chunk[_where(_values(chunk, shift, bits) == value)] for chunk in _chunks(entries))
    return torch.cat(list(found))


def _values(entries: Tensor, shift: int, bits: int) -> Tensor:
    return entries >> shift & (1 << bits) - 1


def _where(mask: Tensor) -> Tensor:
    """Return the indices at which it is True; on a CPU numpy is faster at it."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero()[:, 0]


def _boundary(total: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return per tensor at which value the count reaches `wanted`, and how many it needs of it."""
    descending = total.flip(1)
    reached = descending.cumsum(1)
    place = torch.searchsorted(reached, wanted[:, None])
    above = (reached - descending).gather(1, place)
    return total.shape[1] - 1 - place[:, 0], wanted - above[:, 0]


def _check_sizes(total: Tensor, sizes: Sequence[int]) -> None:
    for number, (held, size) in enumerate(zip(total.sum(1).tolist(), sizes, strict=True)):
        if held != size:
            raise ValueError(f"tensor {number}: it has {size} entries, its parts have {held}")


def _all_reduced(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the sum over the ranks, leaving `own` as it is."""
    total = own.to(_communicating(own.device, group), copy=True)
    dist.all_reduce(total, group=group)
    return total.to(own.device)


def _all_gathered(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return what every rank has, in the order of the ranks."""
    sent = own.to(_communicating(own.device, group))
    everyone = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, sent, group=group)
    return torch.stack(everyone).to(own.device)


def _communicating(device: torch.device, group: dist.ProcessGroup | None) -> torch.device:
    """Return `device` if the group can send from it: nccl, beside offloaded state, cannot."""
    config = dist.get_backend_config(group)  # as in "cpu:gloo,cuda:nccl"
    kinds = [entry.split(":")[0] for entry in config.split(",")]
    return device if device.type in kinds else torch.device(kinds[0])
