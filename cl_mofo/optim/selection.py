"""Which entries of a tensor move: the k of largest magnitude, ties to the smallest index.

MoFO (arXiv 2407.20999), Algorithm 1 with Definition 1 and Remark 2. What the magnitudes are of is
the caller's choice; MoFO hands over the first moment. No value may be NaN.
"""

from __future__ import annotations

import functools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Share = float | str | Fraction | Decimal
"""A fraction of a tensor's entries, in (0, 1], taken as the decimal (or ratio) it is written as."""

# Magnitudes are compared as integers: without its sign bit, a float's pattern grows with it. It is
# exact (-0.0 is 0, subnormals are never flushed) and what numpy partitions fastest.
_BITS: dict[torch.dtype, type[np.signedinteger]] = {
    torch.float32: np.int32,
    torch.float64: np.int64,
}

_CHUNK = 1 << 17  # entries read at a time: scratch stays in a core's cache
_STRIDE = 61  # every 61st entry is sampled; a prime, so as not to follow a matrix's columns
_SAMPLED_FROM = 1 << 16  # smaller tensors are partitioned whole

Bits = NDArray[np.signedinteger]
Indices = NDArray[np.int64]


@functools.lru_cache(typed=True)
def count(update_fraction: Share, numel: int) -> int:
    """Return ceil(update_fraction * numel), the number of entries that move.

    Computed on the fraction as written: 0.07 of 100 is 7, where floats say 7.000000000000001. The
    ceiling is the one in the proof of the paper's Lemma 2.
    """
    return math.ceil(Fraction(str(update_fraction)) * numel)


def largest(values: Tensor, k: int) -> Tensor:
    """Return the flat indices of the `k` entries with the largest |value|, in no set order.

    Equal magnitudes go to the smallest index, so the set is unique. On a CPU time and memory are
    a few passes and about `k` indices; elsewhere nothing waits for the device.

    Args:
        values: float32 or float64, one-dimensional, contiguous, without NaN.
        k: between 0 and the number of entries.

    Returns:
        int64 of shape (k,), on the device of `values`.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(_largest_on_host(values.numpy().view(_BITS[values.dtype]), k))
    return largest_on_device(values, k)


def largest_on_device(values: Tensor, k: int) -> Tensor:
    """Do what `largest` does with tensor operations of fixed shapes, which need no host."""
    if values.dtype == torch.float64:
        order = torch.sort(values.abs(), descending=True, stable=True).indices
        return order[:k]
    bits = values.view(torch.int32).bitwise_and(torch.iinfo(torch.int32).max)
    index = torch.arange(values.numel(), device=values.device)
    # Magnitude above, index below: no two keys are equal, and of equal magnitudes the smaller
    # index has the larger key.
    return torch.topk((bits.long() << 32) - index, k, sorted=False).indices


def _largest_on_host(bits: Bits, k: int) -> Indices:
    """Select among the few entries above a lower bound of the k-th magnitude, guessed by sampling.

    Where the guess is wrong, because entries are tied or unlike the sample, the result is the same
    and only the time differs.
    """
    if k == 0:
        return np.empty(0, np.int64)
    if len(bits) < _SAMPLED_FROM:
        return _exactly(bits & _magnitude(bits), k)
    bound = _guess(bits, k)
    above = _above(bits, bound)
    if len(above) >= k:
        return above[_exactly(bits[above] & _magnitude(bits), k)]
    ties = _first_equal(bits, bound, k - len(above))
    if len(above) + len(ties) == k:
        return np.concatenate([above, ties])
    return _exactly(bits & _magnitude(bits), k)


def _exactly(magnitudes: Bits, k: int) -> Indices:
    """Select by the k-th magnitude itself."""
    threshold = _kth_largest(magnitudes.copy(), k)
    above = np.flatnonzero(magnitudes > threshold)
    ties = np.flatnonzero(magnitudes == threshold)
    return np.concatenate([above, ties[: k - len(above)]])


def _guess(bits: Bits, k: int) -> int:
    """Return a magnitude that slightly more than `k` entries are likely to exceed."""
    sample = bits[::_STRIDE] & _magnitude(bits)
    expected = k * len(sample) / len(bits)
    rank = int(expected + 4 * math.sqrt(expected)) + 8  # four standard deviations to the low side
    return _kth_largest(sample, min(rank, len(sample)))


def _kth_largest(scratch: Bits, k: int) -> int:
    scratch.partition(len(scratch) - k)
    return int(scratch[len(scratch) - k])


def _magnitude(bits: Bits) -> np.signedinteger:
    """Return the mask that takes the sign off."""
    return bits.dtype.type(np.iinfo(bits.dtype).max)


def _above(bits: Bits, bound: int) -> Indices:
    """Return the indices of magnitudes greater than `bound`, ascending."""
    found = []
    scratch = np.empty(_CHUNK, bits.dtype)
    for start in range(0, len(bits), _CHUNK):
        chunk = bits[start : start + _CHUNK]
        magnitudes = np.bitwise_and(chunk, _magnitude(bits), out=scratch[: len(chunk)])
        found.append(np.flatnonzero(magnitudes > bound) + start)
    return np.concatenate(found)


def _first_equal(bits: Bits, bound: int, wanted: int) -> Indices:
    """Return the first `wanted` indices of magnitudes equal to `bound`, fewer if there are fewer.

    It stops at the last one wanted, so a tensor of zeros costs no index per zero.
    """
    found = [np.empty(0, np.int64)]
    for start in range(0, len(bits), _CHUNK):
        if wanted <= 0:
            break
        chunk = bits[start : start + _CHUNK] & _magnitude(bits)
        found.append(np.flatnonzero(chunk == bound)[:wanted] + start)
        wanted -= len(found[-1])
    return np.concatenate(found)
