"""How sure OP and BWT are, and the difference of two runs in them, given the test examples at hand.

OP and BWT (matrix.py) are sums over tasks of means over test examples. With f_ij the score of
example j of task i after the last of T tasks, d_ij its score just after learning task i:

    OP  = sum_i mean_j  f_ij / T
    BWT = sum_i mean_j  (f_ij - d_ij) / (T - 1)         (the last task's addends are 0)

So a run is its examples' addends to the two figures, and a difference of two runs on the same
examples is the difference of their addends. What is computed here knows nothing else.

Both ways take the trained models as they are. Training anew with another seed is another matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cl_mofo.errors import UserError

Addends = tuple[NDArray[np.float64], ...]
"""For each task [examples, 2]: what each example adds to its task's mean in OP and in BWT."""

BLOCK = 4_000_000
"""Draws held at once."""
TIED = 1e-9
"""Statistics closer than this share of the largest possible one are equal: sums are rounded."""


def addends(final: Sequence[ArrayLike], learned: Sequence[ArrayLike]) -> Addends:
    """Return what each example adds to OP and BWT.

    Args:
        final: for each of the T tasks, in the order learned, the scores [examples] of its test
            examples after the last task, in percent.
        learned: the same just after the task itself was learned.

    Returns:
        For each task [examples, 2]. BWT is NaN where T is 1.

    Raises:
        UserError: there is no task, a task without examples, or another number of them.
    """
    pairs = [
        (np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64))
        for after, before in zip(final, learned, strict=True)
    ]
    sizes = [(after.shape, before.shape) for after, before in pairs]
    if not pairs or any(a != b or len(a) != 1 or not a[0] for a, b in sizes):
        raise UserError(
            f"the scores of single examples have the shapes {sizes}; each task has as many after "
            f"the last task as after itself, at least 1"
        )
    T = len(pairs)
    earlier = T - 1 or math.nan
    return tuple(
        np.stack([after / T, (after - before) * (i < T) / earlier], axis=1)
        for i, (after, before) in enumerate(pairs, 1)
    )


def minus(one: Addends, other: Addends) -> Addends:
    """Return the addends of the difference of two runs on the same test examples.

    Raises:
        UserError: they have other numbers of tasks or examples.
    """
    _alike([one, other])
    return tuple(a - b for a, b in zip(one, other, strict=True))


def figures(of: Addends) -> NDArray[np.float64]:
    """Return OP and BWT [2], or the differences in them."""
    means: NDArray[np.float64] = np.sum([task.mean(axis=0) for task in of], axis=0)
    return means


def bootstrap(of: Sequence[Addends], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return OP and BWT on resampled test sets [runs, 2, resamples].

    Each resample draws as many examples of each task as it has, with replacement, and is the same
    for all that is given, so that differences are paired.

    Args:
        of: runs or differences, all on the same test examples.
        resamples: how many, at least 1.
        seed: of the draws.

    Raises:
        UserError: they have other numbers of tasks or examples.
    """
    _alike(of)
    random = np.random.default_rng(seed)
    found = np.zeros((resamples, 2 * len(of)))
    for tasks in zip(*of, strict=True):
        values, n = np.concatenate(tasks, axis=1), len(tasks[0])
        for start, rows in _blocks(resamples, n):
            drawn = random.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
            found[start : start + rows] += times.astype(np.float64) @ values / n
    return found.T.reshape(len(of), 2, resamples)


def interval(figure: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return the percentile interval of a figure's resamples (Efron and Tibshirani 1993, 13.3).

    Args:
        figure: [resamples].
        confidence: from 0 to 1, exclusive.
    """
    low, high = np.quantile(figure, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def permutation_test(difference: Addends, permutations: int, seed: int) -> tuple[float, float]:
    """Return the two-sided p values of a difference in OP and in BWT.

    If neither run were better, what they scored on an example, after the last task and just after
    its own, could as well have been the other's: each example's difference has either sign with the
    same probability (Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989).

    Args:
        difference: of two runs, by `minus`.
        permutations: random ones. All are gone through where they are no more than that.
        seed: of the draws.

    Returns:
        Of those as they were drawn, the share with a difference at least as large, the one observed
        counted in (Phipson and Smyth 2010). NaN for a figure that is.
    """
    on_examples = np.concatenate([task / len(task) for task in difference])
    op, bwt = (_flipped(column, permutations, seed) for column in on_examples.T)
    return op, bwt


def _flipped(on_examples: NDArray[np.float64], permutations: int, seed: int) -> float:
    if np.isnan(on_examples).any():
        return math.nan
    apart = on_examples[on_examples != 0]  # the sign of the others changes nothing
    n, least = len(apart), abs(apart.sum()) - TIED * np.abs(apart).sum()
    if n < 63 and 2**n <= permutations:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ apart) >= least))
    random, count = np.random.default_rng(seed), 1
    for _, rows in _blocks(permutations, n):
        signs = 1.0 - 2.0 * random.integers(0, 2, (rows, n), dtype=np.int8)
        count += int(np.count_nonzero(np.abs(signs @ apart) >= least))
    return count / (permutations + 1)


def _blocks(rows: int, width: int) -> list[tuple[int, int]]:
    """Return starts and sizes of blocks of rows that hold few enough draws."""
    size = max(1, BLOCK // width)
    return [(start, min(size, rows - start)) for start in range(0, rows, size)]


def _alike(of: Sequence[Addends]) -> None:
    sizes = {tuple(len(task) for task in one) for one in of}
    if len(sizes) != 1:
        told = " and ".join(map(str, sorted(sizes))) or "none"
        raise UserError(f"runs are compared on the same test examples; found {told} by task")
