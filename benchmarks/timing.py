"""Times of things done in turns in one process, told as ratios; and how a cost grows.

A machine's speed changes from minute to minute. Contenders that take turns meet the same changes,
so each turn gives one ratio of its own, and the median of the turns' ratios is what is told.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def seconds(do: Callable[[], object]) -> float:
    """Return how long a call takes, the work it leaves to a GPU included."""
    synchronize()
    began = time.perf_counter()
    do()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each contender's calls, one a turn; the first turns do not count.

    Every other turn goes through them backwards, so that none always follows the same one.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warmup, repeats):
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for name in order:
            taken = seconds(contenders[name])
            if turn >= 0:
                times[name].append(taken)
    return times


def ratios(times: Mapping[str, Sequence[float]], over: str) -> list[dict[str, Any]]:
    """Return a row for each contender: its median time, and its ratio to that of `over`.

    Returns:
        rows of `name`, `ms` (median), `ratio` (median of the turns' ratios), `lowest` and `highest`
        (of the turns' ratios) and `turns`.
    """
    return [
        {"name": name, "ms": 1000 * statistics.median(taken), **ratio(taken, times[over])}
        for name, taken in times.items()
    ]


def ratio(taken: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Return the median of what was taken turn by turn over the base's, and its range."""
    each = [a / b for a, b in zip(taken, base, strict=True)]
    return {
        "ratio": statistics.median(each),
        "lowest": min(each),
        "highest": max(each),
        "turns": len(each),
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the b of cost = a * size^b, fitted by least squares to the logarithms.

    Args:
        sizes: positive, at least two different ones.
        costs: positive, one for each size.
    """
    fitted = statistics.linear_regression(list(map(math.log, sizes)), list(map(math.log, costs)))
    return fitted.slope
