"""Which runs can be compared with which: of one setting, and seed by seed with a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cl_mofo.errors import UserError, nearest
from cl_mofo.report.paper import strategy_key
from cl_mofo.report.results import RunResults
from cl_mofo.report.summary import Entry, Setting
from cl_mofo.report.table import row_label
from cl_mofo.untrusted import shortened


def on_test(found: Sequence[RunResults]) -> list[RunResults]:
    """Return the runs on the test split, or all where there are none: a tuning's lie beside."""
    return [run for run in found if run.split == "test"] or list(found)


def one_setting(table: Sequence[Entry]) -> Setting:
    """Return what all rows have in common.

    Raises:
        UserError: there is no row, or they are of several settings.
    """
    settings = list(dict.fromkeys(entry.setting for entry in table))
    if not settings:
        raise UserError("no run is finished: there is nothing to compare yet")
    if len(settings) > 1:
        one, other = (next(e.runs[0] for e in table if e.setting == s) for s in settings[:2])
        told = "the tasks or their order" if one.tasks != other.tasks else "the suite or the model"
        raise UserError(
            f"{one.path.parent} and {other.path.parent} cannot be compared: {told} are not the "
            f"same ({_told(settings[0])}; {_told(settings[1])}). Name runs of one setting"
        )
    return settings[0]


def _told(setting: Setting) -> str:
    return shortened(" ".join([setting.suite, setting.model, " > ".join(setting.tasks)]), 200)


def baseline_of(table: Sequence[Entry], name: str) -> Entry:
    """Return the row of a strategy, or of a label.

    Raises:
        UserError: there is none, or more than one.
    """
    labels = [row_label(entry) for entry in table]
    named = [entry for entry in table if row_label(entry) == name]
    of_it = [entry for entry in table if strategy_key(entry.strategy) == strategy_key(name)]
    found = named or of_it
    if not found:
        raise UserError(
            f"baseline {shortened(name)}: no finished run is of it{nearest(name, labels)}. There "
            f"are: {'; '.join(dict.fromkeys(labels))}"
        )
    if len(found) > 1:
        raise UserError(
            f"baseline {shortened(name)}: several rows could be it. Name one whole: "
            f"{'; '.join(row_label(entry) for entry in found)}"
        )
    return found[0]


def pairs_of(
    base: Entry, table: Sequence[Entry]
) -> tuple[list[tuple[Entry, RunResults, RunResults]], list[str]]:
    """Return each other run with the baseline's of its seed, and the names of those without.

    Raises:
        UserError: there are others, and none has a seed of the baseline's.
    """
    of_seed = {run.seed: run for run in base.runs}
    others = [(entry, run) for entry in table if entry is not base for run in entry.runs]
    pairs = [(entry, run, of_seed[run.seed]) for entry, run in others if run.seed in of_seed]
    if others and not pairs:
        raise UserError(
            f"no other run has a seed of {row_label(base)}'s ({', '.join(map(str, of_seed))}), and "
            f"runs are compared seed by seed"
        )
    alone = [f"{row_label(entry)}, seed {run.seed}" for entry, run in others]
    return pairs, [
        told for told, (_, run) in zip(alone, others, strict=True) if run.seed not in of_seed
    ]


def left_out(
    found: Sequence[RunResults], table: Sequence[Entry], alone: Sequence[str]
) -> Iterator[str]:
    """Say which runs do not enter, and whether none is on the test split."""
    entering = on_test(found)
    if any(run.split != "test" for run in entering):
        yield "All figures are on validation data, none on the test split"
    if aside := len(found) - len(entering):
        yield f"Left out, as scored on validation data: {aside} runs"
    if unfinished := [run.name for run in entering if not run.finished]:
        yield f"Left out, as unfinished: {', '.join(unfinished)}"
    if repeats := sum(entry.repeats for entry in table):
        yield f"Runs that repeat another's seed and scores count once ({repeats} left out)"
    if alone:
        yield f"Without a run of the baseline with their seed: {'; '.join(alone)}"
