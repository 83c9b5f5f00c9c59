"""What holds for any result matrix."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_mofo.evaluation import ResultMatrix

nan = math.nan
quick = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def full(draw):
    """A full matrix of 2 to 5 tasks with scores before training."""
    size = draw(st.integers(2, 5))
    percent = st.floats(0, 100, width=32)
    rows = draw(st.lists(st.lists(percent, min_size=size, max_size=size), min_size=size + 1,
                         max_size=size + 1))  # fmt: skip
    return ResultMatrix([f"t{i}" for i in range(size)], rows[1:], rows[0])


@quick
@given(full(), st.randoms(use_true_random=False))
def test_op_knows_no_order_of_tasks(matrix, chance):
    order = list(range(len(matrix.tasks)))
    chance.shuffle(order)
    scores = matrix.scores.copy()
    scores[-1] = scores[-1, order]
    assert ResultMatrix(matrix.tasks, scores).op() == matrix.op()


@quick
@given(full())
def test_names_do_not_matter(matrix):
    renamed = ResultMatrix([t.upper() for t in matrix.tasks], matrix.scores, matrix.initial)
    for figure in ("op", "bwt", "forgetting", "forward_transfer", "learned"):
        assert getattr(renamed, figure)() == getattr(matrix, figure)()


@quick
@given(full())
def test_op_is_what_was_learned_plus_what_changed(matrix):
    # T OP = T learned + (T - 1) BWT, by writing out the sums.
    size = len(matrix.tasks)
    assert size * matrix.op() == pytest.approx(
        size * matrix.learned() + (size - 1) * matrix.bwt(), abs=1e-9
    )


@quick
@given(full())
def test_forgetting_is_never_below_minus_bwt(matrix):
    # The best earlier score is at least the one just after learning.
    assert matrix.forgetting() >= -matrix.bwt() - 1e-9
    lower = np.where(np.tri(len(matrix.tasks), dtype=bool), matrix.scores, nan)
    assert ResultMatrix(matrix.tasks, lower).forgetting() <= matrix.forgetting() + 1e-9


@quick
@given(full(), st.floats(-50, 50))
def test_transfer_is_the_same_on_another_zero(matrix, shift):
    moved = ResultMatrix(matrix.tasks, matrix.scores + shift, matrix.initial + shift)
    for figure in ("bwt", "forgetting", "forward_transfer"):
        assert getattr(moved, figure)() == pytest.approx(getattr(matrix, figure)(), abs=1e-9)
    assert moved.op() == pytest.approx(matrix.op() + shift, abs=1e-9)
