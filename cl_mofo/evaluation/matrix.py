"""The result matrix of a continual run and the figures read from it.

R[t, i] is the score on task i after learning tasks 1..t, t and i from 1 to T. The conventions, by
which published figures differ:

    overall performance   OP_t  = 1/t     sum_{i<=t} R[t, i]
    backward transfer     BWT_t = 1/(t-1) sum_{i<t}  (R[t, i] - R[i, i])      signed, divisor t-1
    forgetting            F     = 1/(T-1) sum_{j<T}  (max_{l<T} R[l, j] - R[T, j])
    forward transfer      FWT   = 1/(T-1) sum_{i>1}  (R[i-1, i] - R[0, i])    R[0] = before training
    learned               L_t   = 1/t     sum_{i<=t} R[i, i]

OP and BWT as in TRACE (Wang et al., arXiv 2310.06762), whose printed tables have the divisor t-1;
FWT and BWT from Lopez-Paz and Ranzato (NeurIPS 2017), with the model before training as the
baseline; forgetting from Chaudhry et al. (ECCV 2018).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cl_mofo.errors import UserError


class ResultMatrix:
    """Scores on every task after every task learned, in percent, as far as they were measured.

    Args:
        tasks: the names of the T tasks, in the order in which they were learned.
        scores: T x T, array-like (lists, numpy, pandas): `scores[t][i]` is the score on task i
            after learning task t, counted from 0. `None` or NaN means not measured.
        initial: the T scores before any training, or None.

    Raises:
        UserError: no task or a name given twice; a shape that does not fit; a cell that is neither
            a finite number nor a sign of being unmeasured; a data frame whose columns are these
            tasks in another order.
    """

    def __init__(self, tasks: Iterable[str], scores: Any, initial: Any = None) -> None:
        self.tasks: tuple[str, ...] = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        if not self.tasks:
            raise UserError("a result matrix needs at least one task")
        twice = [name for name, count in Counter(self.tasks).items() if count > 1]
        if twice:
            raise UserError(f"a result matrix names each task once; given twice: {twice[0]}")
        for labels in (getattr(scores, "columns", ()), getattr(initial, "index", ())):
            self._check_order(labels)
        T = len(self.tasks)
        rows = [_cells(row, T, f"scores[{t}]") for t, row in enumerate(_rows(scores, T))]
        self.scores: npt.NDArray[np.float64] = np.array(rows)
        self.scores.setflags(write=False)
        self.initial: npt.NDArray[np.float64] | None = None
        if initial is not None:
            self.initial = np.array(_cells(initial, T, "initial"))
            self.initial.setflags(write=False)

    def op(self, after: int | None = None) -> float:
        """Return the overall performance after `after` tasks (1..T, by default all), in percent.

        Raises:
            UserError: `after` is out of range, or a score in row `after` was not measured.
        """
        t = self._learned_tasks(after)
        return _mean(self._cell(t, i, f"op(after={t})") for i in range(1, t + 1))

    def bwt(self, after: int | None = None) -> float:
        """Return the backward transfer after `after` tasks (2..T, by default all), in points.

        Negative means that earlier tasks were forgotten. After one task there is no earlier one.

        Raises:
            UserError: `after` is 1 or out of range, or a score that it needs was not measured.
        """
        t = self._learned_tasks(after)
        if t == 1:
            raise UserError(
                "bwt(after=1) is undefined: after the first task there is no earlier task to have "
                "changed. Ask for it after 2 or more tasks"
            )
        why = f"bwt(after={t})"
        return _mean(self._cell(t, i, why) - self._cell(i, i, why) for i in range(1, t))

    def forgetting(self) -> float:
        """Return the mean drop from a task's best earlier score to its last, in points.

        The best is over all rows before the last. Rows before a task was learned count where they
        were measured, and need not be: a run usually tests only the tasks seen so far.

        Raises:
            UserError: there is one task only, or a score on or below the diagonal is missing.
        """
        T = self._at_least_two("forgetting()")

        def best(j: int) -> float:
            seen = [self._cell(t, j, "forgetting()") for t in range(j, T)]
            unseen = [float(x) for x in self.scores[: j - 1, j - 1] if not math.isnan(x)]
            return max(seen + unseen)

        return _mean(best(j) - self._cell(T, j, "forgetting()") for j in range(1, T))

    def forward_transfer(self) -> float:
        """Return the mean gain on a task from learning those before it, in points.

        Raises:
            UserError: there is one task only, no initial scores were given, or one of them or of
                R[i-1, i] is missing.
        """
        T, why = self._at_least_two("forward_transfer()"), "forward_transfer()"
        return _mean(self._cell(i - 1, i, why) - self._cell(0, i, why) for i in range(2, T + 1))

    def learned(self, after: int | None = None) -> float:
        """Return the mean score of each task just after it was learned, in percent.

        It belongs beside BWT: forgetting little is easy for who learned little.

        Raises:
            UserError: `after` is out of range, or a score on the diagonal was not measured.
        """
        t = self._learned_tasks(after)
        return _mean(self._cell(i, i, f"learned(after={t})") for i in range(1, t + 1))

    def __repr__(self) -> str:
        measured = int((~np.isnan(self.scores)).sum())
        return f"ResultMatrix({', '.join(self.tasks)}; {measured} of {self.scores.size} measured)"

    def _cell(self, t: int, i: int, why: str) -> float:
        """Return R[t, i], counted from 1; row 0 is before any training."""
        row = self.initial if t == 0 else self.scores[t - 1]
        when = f"after learning {self.tasks[t - 1]}" if t else "before any training"
        if row is None or math.isnan(row[i - 1]):
            hint = "; give the scores before training as initial" if row is None else ""
            cell = f"R[{t},{i}] ({self.tasks[i - 1]} {when})"
            raise UserError(f"{cell} was not measured, and {why} needs it{hint}")
        return float(row[i - 1])

    def _learned_tasks(self, after: int | None) -> int:
        T = len(self.tasks)
        if after is None:
            return T
        if isinstance(after, bool) or after not in range(1, T + 1):
            raise UserError(f"after={after}: the number of tasks learned, a whole number 1 to {T}")
        return int(after)

    def _at_least_two(self, why: str) -> int:
        if len(self.tasks) < 2:
            raise UserError(f"{why} is undefined for one task ({self.tasks[0]}); it needs two")
        return len(self.tasks)

    def _check_order(self, labels: Any) -> None:
        found = list(labels) if not callable(labels) else []
        if set(found) == set(self.tasks) and tuple(found) != self.tasks:
            raise UserError(
                f"the scores are labelled {', '.join(found)}, but the order of the tasks is "
                f"{', '.join(self.tasks)}. Put them in the same order"
            )


def figure(of: Callable[[int], float], after: int) -> float | None:
    """Return a matrix's figure after so many tasks, such as `figure(matrix.op, 3)`.

    None where it is undefined after so few, or a cell that it needs was not measured.
    """
    try:
        return of(after)
    except UserError:
        return None


def _mean(values: Iterable[float]) -> float:
    # fsum rounds once, so the order of the tasks does not show in the last digit.
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _rows(scores: Any, T: int) -> Sequence[Any]:
    rows = scores.to_numpy() if hasattr(scores, "to_numpy") else scores
    if isinstance(rows, str) or not hasattr(rows, "__len__") or len(rows) != T:
        found = f"{len(rows)} rows" if hasattr(rows, "__len__") else repr(rows)
        raise UserError(f"scores: found {found} for {T} tasks; it takes {T} rows of {T}")
    return list(rows)


def _cells(row: Any, T: int, where: str) -> list[float]:
    if isinstance(row, str) or not hasattr(row, "__len__") or len(row) != T:
        found = f"{len(row)} cells" if hasattr(row, "__len__") else repr(row)
        raise UserError(f"{where}: found {found} for {T} tasks; None or NaN stands for unmeasured")
    return [_number(cell, f"{where}[{i}]") for i, cell in enumerate(row)]


def _number(cell: Any, where: str) -> float:
    if cell is None or type(cell).__name__ == "NAType":  # pandas.NA
        return math.nan
    try:
        value = math.inf if isinstance(cell, (str, bool)) else float(cell)
    except (TypeError, ValueError):
        value = math.inf
    if math.isinf(value):
        raise UserError(f"{where} is {cell!r}; a score is a number, None or NaN")
    return value
