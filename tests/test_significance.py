"""Intervals and p values of OP and BWT, held to slow loops, to scipy, and to what they promise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cl_mofo.errors import UserError
from cl_mofo.evaluation import ResultMatrix, significance
from cl_mofo.evaluation.significance import (
    addends,
    bootstrap,
    figures,
    interval,
    minus,
    permutation_test,
)

percents = st.sampled_from([0.0, 100.0, 37.5, 33.3])


@st.composite
def runs(draw, count=1, most=5):
    """Draw runs on the same test examples, each as its final scores and those just learned."""
    sizes = draw(st.lists(st.integers(1, most), min_size=2, max_size=3))

    def scores():
        return [draw(st.lists(percents, min_size=n, max_size=n)) for n in sizes]

    return [(scores(), scores()) for _ in range(count)]


def of(rng, sizes, mean):
    """Return a run that is right on an example with some probability."""
    return addends(*([100.0 * (rng.random(n) < mean) for n in sizes] for _ in range(2)))


@given(runs())
def test_the_addends_add_up_to_op_and_bwt(found):
    final, learned = found[0]
    T = len(final)
    scores = [[None] * T for _ in range(T)]
    for i in range(T):
        scores[i][i] = np.mean(learned[i])
    scores[-1] = [np.mean(task) for task in final]
    final = [*final[:-1], learned[-1]]  # after the last task it is just learned
    scores[-1][-1] = np.mean(learned[-1])
    matrix = ResultMatrix([f"t{i}" for i in range(T)], scores)
    assert figures(addends(final, learned)) == pytest.approx([matrix.op(), matrix.bwt()])


def test_one_task_has_no_bwt():
    run = addends([[100, 0]], [[100, 0]])
    op, bwt = figures(run)
    assert (op, math.isnan(bwt)) == (50.0, True)
    assert np.isnan(permutation_test(minus(run, run), 10, 0)[1])


@pytest.mark.parametrize("block", [1, 7, 4_000_000])
def test_a_resample_is_the_mean_over_the_drawn_examples(block, monkeypatch):
    monkeypatch.setattr(significance, "BLOCK", block)
    made = np.random.default_rng(1)
    final = [made.random(4) * 100, made.random(3) * 100, made.random(5) * 100]
    learned = [made.random(4) * 100, made.random(3) * 100, made.random(5) * 100]
    other = addends(learned, final)
    found = bootstrap([addends(final, learned), other], 20, seed=5)
    draws = np.random.default_rng(5)
    drawn = [[[draws.integers(n) for _ in range(n)] for _ in range(20)] for n in (4, 3, 5)]
    for b in range(20):
        rows = [task[b] for task in drawn]
        op = np.mean([np.mean([f[j] for j in row]) for f, row in zip(final, rows, strict=True)])
        changes = [
            np.mean([f[j] - d[j] for j in row])
            for f, d, row in zip(final[:2], learned[:2], rows[:2], strict=True)
        ]
        assert found[0, :, b] == pytest.approx([op, np.mean(changes)])
        changes_of_other = [-change for change in changes]
        assert found[1, 1, b] == pytest.approx(np.mean(changes_of_other))


def test_intervals_are_scipys():
    rng = np.random.default_rng(2)
    tasks = [rng.random(40) * 100, 100.0 * (rng.random(25) < 0.3)]
    ours = interval(bootstrap([addends(tasks, tasks)], 20_000, seed=0)[0, 0], 0.9)
    theirs = stats.bootstrap(
        tasks,
        lambda a, b, axis: (a.mean(axis=axis) + b.mean(axis=axis)) / 2,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.3)  # an interval of 17 points


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(3), 0
    for trial in range(300):
        one, other = of(rng, [80, 60], 0.5), of(rng, [80, 60], 0.4)
        low, high = interval(bootstrap([minus(one, other)], 400, seed=trial)[0, 0], 0.9)
        hits += low <= 10.0 <= high
    assert 0.85 <= hits / 300 <= 0.95


def test_p_values_by_hand():
    def p(*differences):
        run = addends([differences, [0]], [[0] * len(differences), [0]])
        return permutation_test(run, 1000, seed=0)

    assert p(100, 100, 100) == (2 / 8, 2 / 8)  # +++ and ---
    assert p(100, 100, -100) == (1, 1)  # of ±300 and ±100 none is smaller
    assert p(30, 20, 10) == (2 / 8, 2 / 8)  # of 60 40 20 0 and their negatives
    assert p(30, 20, -10) == (4 / 8, 4 / 8)  # ±60, ±40
    assert p(100, 100, 100, 0, 0) == (2 / 8, 2 / 8)


def test_examples_weigh_as_their_task_does():
    # The one example of the first task is worth 50 points, each of the other four 12.5.
    one = addends([[100], [100, 100, 0, 0]], [[0], [0, 0, 0, 0]])
    assert figures(one)[0] == 75.0
    assert permutation_test(one, 1000, 0)[0] == 2 / 8
    less = addends([[100], [-100, 0, 0, 0]], [[0], [0, 0, 0, 0]])
    assert figures(less)[0] == 37.5
    assert permutation_test(less, 1000, 0)[0] == 1.0


@settings(max_examples=30, deadline=None)
@given(runs(count=2, most=3))
def test_all_permutations_are_scipys(pair):
    difference = minus(*(addends(*run) for run in pair))
    on_examples = np.concatenate([task / len(task) for task in difference])
    found = permutation_test(difference, 2**9, seed=0)
    for p, column in zip(found, on_examples.T, strict=True):
        expected = stats.permutation_test(
            (column, np.zeros_like(column)),
            lambda a, b, axis: (a - b).sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        )
        # scipy's statistics are equal to 1e-14 of the observed one, which may be 0.
        if abs(column.sum()) > 1e-6:
            assert p == pytest.approx(expected.pvalue)
        else:
            assert p == 1.0


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=7))
def test_all_permutations_are_those_of_a_loop(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    run = addends([differences, [0]], [[0] * len(differences), [0]])
    expected = sum(s >= observed for s in sums) / len(sums)
    assert permutation_test(run, 2**7, 0)[0] == pytest.approx(expected)


def test_random_permutations_agree_with_all_and_are_never_0(monkeypatch):
    monkeypatch.setattr(significance, "BLOCK", 1000)
    rng = np.random.default_rng(4)
    run = addends([rng.normal(10, 30, 12), [0]], [[0] * 12, [0]])
    exact, _ = permutation_test(run, 4096, seed=0)
    drawn, _ = permutation_test(run, 4095, seed=0)
    assert exact * 4096 == round(exact * 4096)
    assert drawn * 4096 == pytest.approx(round(drawn * 4096))
    assert abs(drawn - exact) < 5 * math.sqrt(exact * (1 - exact) / 4095)
    clear = addends([[100] * 50, [0]], [[0] * 50, [0]])
    assert permutation_test(clear, 999, seed=0) == (1 / 1000, 1 / 1000)


@settings(deadline=None)
@given(runs(count=2), st.integers(1, 300), st.integers(0, 9))
def test_the_other_way_round_is_the_same_with_another_sign(pair, draws, seed):
    one, other = (addends(*run) for run in pair)
    there, back = minus(one, other), minus(other, one)
    assert permutation_test(there, draws, seed) == permutation_test(back, draws, seed)
    found = bootstrap([one, other, there, back], draws, seed)
    assert found[2] == pytest.approx(-found[3])
    assert found[2] == pytest.approx(found[0] - found[1], abs=1e-9)
    low, high = interval(found[2, 0], 0.9)
    assert interval(found[3, 0], 0.9) == pytest.approx((-high, -low))


@settings(deadline=None)
@given(runs())
def test_a_run_does_not_differ_from_itself(found):
    run = addends(*found[0])
    same = minus(run, run)
    assert permutation_test(same, 100, seed=1) == (1.0, 1.0)
    assert not bootstrap([run, same], 30, seed=1)[1].any()


def test_between_equal_models_p_is_uniform():
    rng = np.random.default_rng(6)
    sizes, found = (15, 10, 20), []
    for trial in range(300):
        pair = [addends(*([rng.random(n) for n in sizes] for _ in range(2))) for _ in range(2)]
        found.append(permutation_test(minus(*pair), 199, seed=trial))
    for p in np.transpose(found):
        assert stats.kstest(p, "uniform").pvalue > 0.01


def test_a_difference_that_is_there_is_found():
    rng = np.random.default_rng(7)
    sizes = [300, 200]
    better = permutation_test(minus(of(rng, sizes, 0.6), of(rng, sizes, 0.45)), 999, seed=0)
    assert better[0] < 0.01


@pytest.mark.parametrize(
    ("final", "learned"),
    [([], []), ([[1, 2]], [[1]]), ([[]], [[]]), ([1.0], [1.0]), ([[[1.0]]], [[[1.0]]])],
)
def test_scores_that_do_not_fit_are_refused(final, learned):
    with pytest.raises(UserError, match="as many after"):
        addends(final, learned)


def test_runs_on_other_examples_are_refused():
    one, other = addends([[1.0, 2.0]], [[1.0, 2.0]]), addends([[1.0]], [[1.0]])
    for call in (lambda: minus(one, other), lambda: bootstrap([one, other], 1, 0)):
        with pytest.raises(UserError, match="same test examples"):
            call()
