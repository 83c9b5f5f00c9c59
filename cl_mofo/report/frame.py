"""The report as numbers: a pandas frame, and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cl_mofo.report.results import RunResults
from cl_mofo.report.summary import Entry, entries
from cl_mofo.report.text import inert

if TYPE_CHECKING:
    import pandas as pd


def summarise(runs: Iterable[RunResults], *, paper: bool = False) -> pd.DataFrame:
    """Return the report as a frame, one row per `Entry`.

    Args:
        runs: the runs, as `load_runs` gives them.
        paper: as in `entries`.

    Returns:
        Columns `strategy`, `suite`, `model`, `tasks` (joined by " > "), `variant` (how the
        recipe differs from the strategy's other rows), `run` (the folder of a run that stands
        alone), `n` (runs averaged), `seeds`, `finished`, `tasks_learned`; then in percent `OP`,
        `BWT`, `learned` and the final score of every task under the task's name, each followed by
        its sample standard deviation, `..._std` (NaN for one run), and so `distance` (relative, to
        the initial weights) and the perplexity on prose, `perplexity_before` and
        `perplexity_after`; with `paper` also `paper_OP` and `paper_BWT`.
    """
    import pandas as pd

    table = entries(runs, paper=paper)
    columns = _task_columns(table)
    records = []
    for entry in table:
        record = _record(entry, paper)
        for task, final in zip(entry.setting.tasks, entry.final, strict=True):
            record[columns[task]], record[f"{columns[task]}_std"] = map(_float, final)
        records.append(record)
    return pd.DataFrame.from_records(records)


def csv(runs: Iterable[RunResults], *, paper: bool = False) -> str:
    """Return `summarise` as CSV with a header row: four decimals, empty cells for no figure.

    A text that a spreadsheet would compute has a "'" in front.
    """
    frame = summarise(runs, paper=paper).rename(columns=inert)
    texts = frame.select_dtypes(exclude=["number", "bool"]).columns
    frame[texts] = frame[texts].map(inert)
    return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def _record(entry: Entry, paper: bool) -> dict[str, Any]:
    suite, model, tasks = entry.setting
    record: dict[str, Any] = {
        "strategy": entry.strategy,
        "suite": suite,
        "model": model,
        "tasks": " > ".join(tasks),
        "variant": entry.variant,
        "run": entry.alone,
        "n": len(entry.runs),
        "seeds": " ".join(str(run.seed) for run in entry.runs),
        "finished": entry.finished,
        "tasks_learned": max((run.learned_tasks for run in entry.runs), default=0),
    }
    before, after = entry.perplexities
    figures = {"OP": entry.op, "BWT": entry.bwt, "learned": entry.learned}
    figures |= {"distance": entry.distance}
    figures |= {"perplexity_before": before, "perplexity_after": after}
    for key, figure in figures.items():
        record[key], record[f"{key}_std"] = map(_float, figure)
    if paper:
        record["paper_OP"] = _float(entry.paper and entry.paper.op)
        record["paper_BWT"] = _float(entry.paper and entry.paper.bwt)
    return record


def _float(value: float | None) -> float:
    return float("nan") if value is None else value


def _task_columns(table: Sequence[Entry]) -> dict[str, str]:
    """Give each task a column of its own, also one that is called "OP" or "n"."""
    taken = set(_record(table[0], paper=True)) if table else set()
    columns: dict[str, str] = {}
    for task in dict.fromkeys(task for entry in table for task in entry.setting.tasks):
        name = task
        while {name, f"{name}_std"} & taken:
            name = f"task {name}"
        columns[task] = name
        taken |= {name, f"{name}_std"}
    return columns
