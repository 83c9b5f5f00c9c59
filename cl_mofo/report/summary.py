"""Runs side by side: which of them are averaged, and what the averages are.

Runs are averaged over seeds when strategy, suite, model, order of tasks and the rest of the recipe
are the same and all of them are finished. Left alone, each in a row of its own:
- an unfinished run: its OP after three tasks is no estimate of OP after eight;
- a finished run whose strategy and seed another run shares with different scores: something else
  than the seed differs between them. Equal scores are a repeat, and count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from cl_mofo.report.paper import PaperFigures, paper_source, paper_table, strategy_key
from cl_mofo.report.results import BWT_CONVENTION, OP_CONVENTION, RunResults
from cl_mofo.report.settings import Settings, differences
from cl_mofo.untrusted import printable

CONVENTION = (
    f"{OP_CONVENTION}; {BWT_CONVENTION}; learned = mean over i of R[i,i]; all in percent; "
    "mean ± sample standard deviation (n-1) over seeds"
)


class Setting(NamedTuple):
    """What runs must share to be compared in one table."""

    suite: str
    model: str
    tasks: tuple[str, ...]


class Stat(NamedTuple):
    """A mean and its sample standard deviation; None where there is none."""

    mean: float | None
    std: float | None = None


@dataclass(frozen=True)
class Entry:
    """One row of the report: the runs that are averaged, or a run that stands alone.

    Args:
        strategy: the strategy's name as its first run writes it.
        setting: what the runs have in common.
        runs: the runs behind the figures; none where only the paper has figures.
        variant: how its recipe differs from those of the strategy's other rows.
        alone: the run's folder where it is not averaged with others, else empty.
        repeats: the number of runs left out because they repeat one of `runs`.
        paper: the paper's figures, where they are asked for and there are any.
    """

    strategy: str
    setting: Setting
    runs: tuple[RunResults, ...]
    variant: str = ""
    alone: str = ""
    repeats: int = 0
    paper: PaperFigures | None = None

    @property
    def finished(self) -> bool:
        """Whether all tasks are learned in every run."""
        return all(run.finished for run in self.runs)

    @property
    def op(self) -> Stat:
        """OP after the last task learned."""
        return stat([run.op[-1] if run.op else None for run in self.runs])

    @property
    def bwt(self) -> Stat:
        """BWT after the last task learned."""
        return stat([run.bwt[-1] if run.bwt else None for run in self.runs])

    @property
    def learned(self) -> Stat:
        """Mean of the diagonal over the tasks learned."""
        return stat([run.learned for run in self.runs])

    @property
    def distance(self) -> Stat:
        """Relative distance to the initial weights after the last task learned."""
        return stat([run.distance for run in self.runs])

    @property
    def perplexities(self) -> tuple[Stat, Stat]:
        """Perplexity on prose before training and after the last task learned."""
        pairs = [run.perplexities or (None, None) for run in self.runs]
        return stat([before for before, _ in pairs]), stat([after for _, after in pairs])

    @property
    def final(self) -> tuple[Stat, ...]:
        """The score of each task after the last task learned."""
        columns = range(len(self.setting.tasks))
        return tuple(stat([run.final[i] for run in self.runs]) for i in columns)


def stat(values: Sequence[float | None]) -> Stat:
    """Return mean and sample standard deviation; no mean unless every value is there."""
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return Stat(None)
    return Stat(fmean(there), stdev(there) if len(there) > 1 else None)


def entries(runs: Iterable[RunResults], *, paper: bool = False) -> list[Entry]:
    """Group runs into the rows of a report.

    Rows of one setting stand together; settings and strategies come in the order they first occur,
    finished runs before what only the paper has, and unfinished runs last.

    Args:
        runs: the runs.
        paper: add the paper's Table 2: its figures to the finished rows of the strategies it has,
            and a row without runs for each strategy that only the paper has.
    """
    table: list[Entry] = []
    for setting, groups in _groups(runs).items():
        figures = paper_table() if paper else {}
        done = [entry for group in groups for entry in _finished(group, setting, figures)]
        keys = {strategy_key(entry.strategy) for entry in done}
        table += done
        table += [
            Entry(figure.strategy, setting, (), paper=figure)
            for key, figure in figures.items()
            if key not in keys
        ]
        table += [entry for group in groups for entry in _unfinished(group, setting)]
    return table


class _Group(NamedTuple):
    """Runs that differ in nothing but the seed, as far as is known."""

    key: tuple[str, ...]
    variant: str
    runs: list[RunResults]


def _groups(runs: Iterable[RunResults]) -> dict[Setting, list[_Group]]:
    by_strategy: dict[tuple[Setting, tuple[str, ...]], list[RunResults]] = {}
    for run in runs:
        key = (Setting(run.suite, run.model, run.tasks), strategy_key(run.strategy))
        by_strategy.setdefault(key, []).append(run)
    groups: dict[Setting, list[_Group]] = {}
    for (setting, strategy), members in by_strategy.items():
        recipes: list[Settings] = []
        for run in members:
            if run.settings not in recipes:
                recipes.append(run.settings)
        groups.setdefault(setting, []).extend(
            _Group(strategy, variant, [run for run in members if run.settings == recipe])
            for recipe, variant in zip(recipes, differences(recipes), strict=True)
        )
    return groups


def _finished(
    group: _Group, setting: Setting, figures: Mapping[tuple[str, ...], PaperFigures]
) -> list[Entry]:
    distinct: list[RunResults] = []
    for run in group.runs:
        if run.finished and (run.seed, run.scores) not in [(r.seed, r.scores) for r in distinct]:
            distinct.append(run)
    if not distinct:
        return []
    repeats = sum(run.finished for run in group.runs) - len(distinct)
    entry = Entry(
        distinct[0].strategy,
        setting,
        tuple(distinct),
        group.variant,
        repeats=repeats,
        paper=figures.get(group.key) if distinct[0].split == "test" else None,
    )
    if len({run.seed for run in distinct}) == len(distinct):
        return [entry]
    folders = _folders(distinct)
    return [
        replace(entry, runs=(run,), alone=folders[run.path], repeats=repeats if i == 0 else 0)
        for i, run in enumerate(distinct)
    ]


def _unfinished(group: _Group, setting: Setting) -> list[Entry]:
    runs = [run for run in group.runs if not run.finished]
    folders = _folders(runs)
    return [
        Entry(run.strategy, setting, (run,), group.variant, alone=folders[run.path]) for run in runs
    ]


def _folders(runs: Sequence[RunResults]) -> dict[Path, str]:
    """Name each run's folder, by its path where the name alone would not tell it from another."""
    names = [run.name for run in runs]
    return {
        run.path: run.name
        if names.count(run.name) == 1
        else printable(str(run.path.parent)).replace("\n", r"\n")
        for run in runs
    }


def notes(table: Sequence[Entry]) -> list[str]:
    """Return what must be said under a table: the convention, then what is special in it."""
    said = [CONVENTION]
    if any(not entry.finished for entry in table):
        said.append(
            "Unfinished runs stand alone and enter no mean: their OP, BWT and learned are those "
            "after the tasks learned so far"
        )
    if any(entry.variant for entry in table):
        said.append(
            "Runs of one strategy whose recipes differ in more than the seed are not averaged: "
            "the differences stand beside the strategy's name"
        )
    if any(entry.alone and entry.finished for entry in table):
        said.append(
            "Runs of one strategy and seed with different scores are not averaged: each has its "
            "own row, with its folder's name"
        )
    made = [entry for entry in table if entry.runs]
    if validation := [_name(entry) for entry in made if entry.runs[0].split != "test"]:
        which = "all rows" if len(validation) == len(made) else "; ".join(validation)
        said.append(f"Scored on validation data, not on the test split: {which}")
    if repeats := sum(entry.repeats for entry in table):
        said.append(f"Runs that repeat another's seed and scores count once ({repeats} left out)")
    if len({entry.setting for entry in table}) > 1:
        said.append("Runs over different suites, models or orders of tasks are not averaged")
    if any(entry.paper for entry in table):
        said.append(
            f"paper OP, paper BWT: {paper_source()}; "
            "compare them only with runs of that model on that data"
        )
    return said


def _name(entry: Entry) -> str:
    return f"{entry.strategy} ({entry.variant})" if entry.variant else entry.strategy
