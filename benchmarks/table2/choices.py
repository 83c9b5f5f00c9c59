"""What the tunings of the table's rows found: which values were tried, and how clearly.

A tuning leaves its runs below OUT: `rates` and `fractions`.

    python -m benchmarks.table2.choices OUT/rates STRATEGY

prints the learning rate to be tried next, if the best is at the end of those that were.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_mofo.report import RunResults, load_runs
from cl_mofo.report.text import ABSENT, markdown_table, number

FACTOR = 4
"""Between a learning rate and the next."""


def choices(out: Path, table: Sequence[RunResults]) -> str:
    """Return what each fraction and each learning rate scored on validation data.

    Args:
        out: has the runs.
        table: the table's, for which the values were chosen.
    """
    said = []
    for folder, key, title in (
        ("fractions", "mofo.update_fraction", "MoFO's update fraction, for the row mofo alone:"),
        ("rates", "optimizer.lr", "The learning rate:"),
    ):
        if done := finished(out / folder):
            rows = [run for run in table if folder == "rates" or run.strategy == "mofo"]
            said += [title, tried(done, key), proxy(done), *remarks(done, rows, key)]
    return "\n\n".join(said) or "Nothing: no run of a tuning is there."


def finished(folder: Path) -> list[RunResults]:
    """Return the finished runs in a folder; none if there is no folder or no run yet."""
    if next(folder.rglob("results.json"), None) is None:
        return []
    return [run for run in load_runs([folder]) if run.finished]


def proxy(runs: Sequence[RunResults]) -> str:
    """Say on what values were tried, and how little that tells."""
    examples = [results_of(runs[0])["examples"][task] for task in runs[0].tasks]
    error = 100 * math.sqrt(sum(0.25 / each["eval"] for each in examples)) / len(examples)
    train, validation = (
        ", ".join(map(str, dict.fromkeys(each[split] for each in examples)))
        for split in ("train", "eval")
    )
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    return (
        f"OP / BWT / learned on {', '.join(runs[0].tasks)}, of each {train} training and "
        f"{validation} validation examples; seed {seeds}. In bold the highest OP, of a tie what is "
        f"closest to the initial weights. OP's standard error over examples is up to {error:.1f} "
        "points: what lies nearer to the best than that may be as good. A dash: not tried."
    )


def remarks(runs: Sequence[RunResults], table: Sequence[RunResults], key: str) -> list[str]:
    """Say whose best is at the end of what was tried, and which of the table's were not chosen."""
    cells, said = _cells(runs, key), []
    ends = [
        f"{strategy} ({value:g})"
        for strategy, row in cells.items()
        if (value := float(_best(row).settings[key])) in (min(row), max(row))
    ]
    if ends:
        said.append(
            "At the end of what was tried, beyond which may be better: " + ", ".join(ends) + "."
        )
    used = {run.strategy: float(run.settings[key]) for run in table}
    other = [
        f"{strategy} ({value:g})"
        for strategy, value in used.items()
        if strategy in cells and value != float(_best(cells[strategy]).settings[key])
    ]
    if other:
        said.append(f"**The table has another value than the best for: {', '.join(other)}.**")
    blind = [f"{strategy} ({value:g})" for strategy, value in used.items() if strategy not in cells]
    if blind:
        said.append(f"**Not tried, so that nothing was chosen, for: {', '.join(blind)}.**")
    return said


def _cells(runs: Sequence[RunResults], key: str) -> dict[str, dict[float, RunResults]]:
    cells: dict[str, dict[float, RunResults]] = {}
    for run in runs:
        cells.setdefault(run.strategy, {})[float(run.settings[key])] = run
    return cells


def _best(row: Mapping[float, RunResults]) -> RunResults:
    return min(row.values(), key=lambda r: (-round(r.op[-1] or 0.0, 6), r.distance or math.inf))


def beyond(runs: Sequence[RunResults], strategy: str) -> float | None:
    """Return the rate past a strategy's best one, if that is at the end of what was tried."""
    row = _cells(runs, "optimizer.lr")[strategy]
    best = float(_best(row).settings["optimizer.lr"])
    return best / FACTOR if best == min(row) else best * FACTOR if best == max(row) else None


def tried(runs: Sequence[RunResults], key: str) -> str:
    """Return a table of strategies and values of a key."""
    cells = _cells(runs, key)
    values = sorted({value for row in cells.values() for value in row})
    body = []
    for strategy, row in cells.items():
        best = _best(row)
        body.append([strategy])
        for value in values:
            run = row.get(value)
            text = (
                ABSENT
                if run is None
                else " / ".join(number(figure) for figure in (run.op[-1], run.bwt[-1], run.learned))
            )
            body[-1].append(f"\0{text}\0" if run is best and len(row) > 1 else text)
    made = markdown_table(["strategy", *(f"{value:g}" for value in values)], body)
    return made.replace("\0", "**")


def results_of(run: RunResults) -> dict[str, Any]:
    """Return what a run's results.json holds."""
    results: dict[str, Any] = json.loads(run.path.read_text("utf-8"))
    return results


if __name__ == "__main__":
    following = beyond(finished(Path(sys.argv[1])), sys.argv[2])
    if following is not None:
        print(following)
