"""Runs beside a baseline, on the same test examples: which differences are more than noise.

Each run's OP and BWT get an interval, each difference from the baseline's run of the same seed an
interval and a p value (cl_mofo/evaluation/significance.py), and the differences a mean over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cl_mofo.errors import UserError
from cl_mofo.evaluation.significance import (
    Addends,
    bootstrap,
    figures,
    interval,
    minus,
    permutation_test,
)
from cl_mofo.report.examples import RunExamples
from cl_mofo.report.pairing import baseline_of, left_out, on_test, one_setting, pairs_of
from cl_mofo.report.results import BWT_CONVENTION, OP_CONVENTION, RunResults
from cl_mofo.report.summary import Entry, Setting, Stat, entries, stat
from cl_mofo.report.table import row_label

MOST_RESAMPLES = 1_000_000


class Estimate(NamedTuple):
    """A figure in percent or points, and what is known of its noise; None where there is none.

    Args:
        value: the figure.
        low, high: the ends of its interval.
        p: of a difference, against there being none.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Compared:
    """A run, or the difference between one and the baseline's run of the same seed.

    Args:
        label: the strategy, and what sets it apart from its other rows.
        seed: the seed of the run.
        op: OP, or the difference in it.
        bwt: BWT, or the difference in it.
    """

    label: str
    seed: int
    op: Estimate
    bwt: Estimate


@dataclass(frozen=True)
class OverSeeds:
    """The differences between a strategy and the baseline, over seeds.

    Args:
        label: the strategy, and what sets it apart from its other rows.
        seeds: those that both have.
        op: mean and sample standard deviation of the differences in OP.
        bwt: those in BWT.
    """

    label: str
    seeds: tuple[int, ...]
    op: Stat
    bwt: Stat


@dataclass(frozen=True)
class Comparison:
    """Runs beside a baseline.

    Args:
        setting: suite, model and tasks, the same for all.
        baseline: the baseline's label.
        confidence: of the intervals.
        runs: every finished run.
        differences: a run's figures less those of the baseline's run of the same seed.
        means: the differences over seeds.
        notes: what must be said under the figures.
    """

    setting: Setting
    baseline: str
    confidence: float
    runs: tuple[Compared, ...]
    differences: tuple[Compared, ...]
    means: tuple[OverSeeds, ...]
    notes: tuple[str, ...]


def compare(
    runs: Iterable[RunResults],
    baseline: str,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare runs with those of a baseline, seed by seed, on the same test examples.

    Args:
        runs: the runs, as `load_runs` gives them. Unfinished ones are left out, and beside runs on
            the test split those on validation data.
        baseline: a strategy's name, or a row's whole label as `render` shows it, such as
            "mofo (mofo.update_fraction=0.1)", where the strategy has several.
        confidence: of the intervals, above 0 and below 1.
        resamples: test sets drawn for the intervals, and permutations for the p values, from 1
            to 1,000,000; with 10,000 an interval's ends are sure to about a hundredth of its
            length.
        seed: of these draws.

    Raises:
        UserError: there is no finished run of the baseline, or more than one that could be it; runs
            of other tasks, orders, suites or models; a run without scores of single examples, or
            tested on others; or a number out of its range.
    """
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence:g}: a share between 0 and 1, such as 0.95")
    if not 1 <= resamples <= MOST_RESAMPLES:
        raise UserError(f"resamples {resamples}: 1 to {MOST_RESAMPLES}; 10000 is usual")
    found = list(runs)
    table = [entry for entry in entries(on_test(found)) if entry.finished]
    setting = one_setting(table)
    base = baseline_of(table, baseline)
    pairs, alone = pairs_of(base, table)
    addends = _addends(base, table)
    every = [(entry, run) for entry in table for run in entry.runs]
    draws = _Draws(confidence, resamples, seed)
    shown = draws.estimated([addends[run.path] for _, run in every])
    apart = [minus(addends[run.path], addends[partner.path]) for _, run, partner in pairs]
    differences = [
        Compared(row_label(entry), run.seed, *estimates)
        for (entry, run, _), estimates in zip(pairs, draws.tested(apart), strict=True)
    ]
    return Comparison(
        setting,
        row_label(base),
        confidence,
        tuple(
            Compared(row_label(entry), run.seed, *estimates)
            for (entry, run), estimates in zip(every, shown, strict=True)
        ),
        tuple(differences),
        tuple(_over_seeds(differences)),
        (*draws.notes(differences), *left_out(found, table, alone)),
    )


class _Draws(NamedTuple):
    """How noise is estimated; the same resamples for everything on the same test examples."""

    confidence: float
    resamples: int
    seed: int

    def estimated(self, of: Sequence[Addends]) -> list[list[Estimate]]:
        """Return OP and BWT of each, with intervals."""
        if not of:
            return []
        return [
            [
                Estimate()
                if np.isnan(value)
                else Estimate(float(value), *interval(drawn, self.confidence))
                for value, drawn in zip(figures(one), resampled, strict=True)
            ]
            for one, resampled in zip(of, bootstrap(of, self.resamples, self.seed), strict=True)
        ]

    def tested(self, of: Sequence[Addends]) -> list[list[Estimate]]:
        """Return differences in OP and BWT, with intervals and p values."""
        return [
            [
                estimate if estimate.value is None else estimate._replace(p=p)
                for estimate, p in zip(
                    estimates, permutation_test(one, self.resamples, self.seed), strict=True
                )
            ]
            for one, estimates in zip(of, self.estimated(of), strict=True)
        ]

    def notes(self, differences: Sequence[Compared]) -> list[str]:
        """Say what the figures are, and what they do not cover."""
        apart = [figure for row in differences for figure in (row.op, row.bwt)]
        tests = sum(figure.p is not None for figure in apart)
        said = [
            f"{OP_CONVENTION}; {BWT_CONVENTION}; all in percent",
            f"In brackets: {self.confidence * 100:g}% percentile bootstrap intervals over "
            f"{self.resamples} resamples of the test examples within each task, the same for both "
            "runs of a difference",
        ]
        if not tests:
            return said
        return [
            *said,
            "p: two-sided paired permutation test; what two runs of a seed scored on each example "
            f"is exchanged at random {self.resamples} times, or in all ways if those are fewer",
            "Both are about test examples, for the models as they were trained; what another seed "
            "would have trained shows over seeds: mean ± sample standard deviation (n-1)",
            "The p values of several seeds share their test examples, so that they are not pooled "
            "(Fisher's method takes independent ones)",
            f"Nothing is corrected for there being {tests} p values; Holm's method would",
            *["An interval without width is that of examples which all differ alike, not certainty"]
            * any(f.low is not None and math.isclose(f.low, f.high or 0.0) for f in apart),
        ]


def _addends(base: Entry, table: Sequence[Entry]) -> dict[Path, Addends]:
    """Return what the examples of every run add to its figures, by the run's path."""
    found = {run.path: RunExamples.of(run) for entry in table for run in entry.runs}
    for examples in found.values():
        examples.check_alike(found[base.runs[0].path])
    return {path: examples.addends for path, examples in found.items()}


def _over_seeds(differences: Sequence[Compared]) -> Iterator[OverSeeds]:
    for label, group in groupby(differences, key=lambda row: row.label):
        rows = list(group)
        yield OverSeeds(
            label,
            tuple(row.seed for row in rows),
            stat([row.op.value for row in rows]),
            stat([row.bwt.value for row in rows]),
        )
