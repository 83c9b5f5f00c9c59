"""How a step's examples are divided among forward passes: with no padding, or with little."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cl_mofo.data.batches import MicroBatch, chunks, collate, pack
from cl_mofo.data.tokenise import Example

PASS = 64
"""Tokens whose computing takes about as long as what every pass takes besides."""


@dataclass(frozen=True)
class Way:
    """How a model may be given several examples at once (`cl_mofo.probe` finds out).

    Args:
        packed: one after another in one row.
        masked: if not, whether padding on the right has to be masked.
        refused: why they are not packed, if they might have been.
    """

    packed: bool = False
    masked: bool = True
    refused: str | None = None


def micro_batches(
    examples: Sequence[Example],
    size: int,
    pad: int,
    *,
    way: Way,
    ranks: int = 1,
    together: bool = False,
) -> list[MicroBatch]:
    """Divide a step's examples into forward passes, the longest first (memory faults come early).

    Args:
        examples: those of the step, in the order drawn; at least one.
        size: how many of the longest of them are the most that a pass takes, by their tokens if
            they are packed, by their number if they are padded.
        pad: the id that fills.
        way: how the model takes them.
        ranks: processes that share the passes.
        together: let each `size` that were drawn in a row be a pass, for a loss that is a mean
            over passes: there, which examples meet in one decides their weight.
    """
    if together:
        groups = chunks(examples, size)
    else:
        ordered = sorted(examples, key=lambda e: -len(e))
        divide = packs if way.packed else cuts
        groups = [
            [ordered[i] for i in group]
            for group in divide([len(example) for example in ordered], size, ranks)
        ]
    if way.packed:
        return [pack(group) for group in groups]
    return [collate(group, pad, masked=way.masked) for group in groups]


def packs(lengths: Sequence[int], size: int, ranks: int = 1) -> list[list[int]]:
    """Divide examples into few packs of nearly equal length.

    Args:
        lengths: tokens of each, the longest first; at least one.
        size: how many times the longest a pack's tokens are at most.
        ranks: let the number of packs be a multiple of this, if there are so many examples.

    Returns:
        the examples' indices, the longest pack first.
    """
    budget = size * lengths[0]
    count = math.ceil(sum(lengths) / budget)
    while True:
        count = min(math.ceil(count / ranks) * ranks, len(lengths))
        loads = [(0, number) for number in range(count)]
        groups: list[list[int]] = [[] for _ in loads]
        for i, length in enumerate(lengths):  # each to the pack that has least so far
            load, number = loads[0]
            heapq.heapreplace(loads, (load + length, number))
            groups[number].append(i)
        if max(loads)[0] <= budget:
            return [groups[number] for _, number in sorted(loads, reverse=True)]
        count += 1


def cuts(lengths: Sequence[int], size: int, ranks: int = 1) -> list[list[int]]:
    """Divide examples into runs of similar length, by the least that padding and passes take.

    Args:
        lengths: tokens of each, the longest first; at least one.
        size: most examples in a run.
        ranks: processes that share the runs; several get runs of one size, as they wait for one
            another.

    Returns:
        the examples' indices, the longest first.
    """
    if ranks > 1:
        return chunks(range(len(lengths)), min(size, math.ceil(len(lengths) / ranks)))
    best = [(0, 0)]  # what the first so many examples take, and where their last run begins
    for end in range(1, len(lengths) + 1):
        starts = range(max(0, end - size), end)
        best.append(min((best[i][0] + lengths[i] * (end - i) + PASS, i) for i in starts))
    runs: list[list[int]] = []
    end = len(lengths)
    while end:
        start = best[end][1]
        runs.append(list(range(start, end)))
        end = start
    return runs[::-1]
