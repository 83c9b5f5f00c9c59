"""What the tunings of the table's rows found: which values were tried, and how clearly.

A tuning leaves its runs below OUT: `rates` and `fractions`.

    python -m benchmarks.table2.choices OUT/rates STRATEGY

prints the learning rate to be tried next, if the best is at the end of those that were.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cl_mofo.report import RunResults, load_runs
from cl_mofo.report.text import ABSENT, markdown_table, number

FACTOR = 4
"""Between a learning rate and the next."""
LEGEND = (
    "OP / BWT / learned. In bold the highest OP, of a tie what is closest to the initial weights. "
    "A dash: not tried."
)


@dataclass(frozen=True)
class Tried:
    """What a strategy scored with one value of a key; in percent, but for the distance.

    Args:
        strategy: as the table names it.
        value: the key's.
        op, bwt, learned: on validation data.
        distance: to the initial weights, where it is known.
    """

    strategy: str
    value: float
    op: float | None
    bwt: float | None
    learned: float | None
    distance: float | None = None

    @classmethod
    def of(cls, run: RunResults, key: str) -> Tried:
        """Return what a finished run scored."""
        figures = run.op[-1], run.bwt[-1], run.learned
        return cls(run.strategy, float(run.settings[key]), *figures, run.distance)


def choices(out: Path, table: Sequence[RunResults]) -> str:
    """Return what each fraction and each learning rate scored on validation data.

    Args:
        out: has the runs, or what is left of some of them in a file tried.csv.
        table: the table's, for which the values were chosen.
    """
    said, runs = [], []
    for folder, key, title in (
        ("fractions", "mofo.update_fraction", "MoFO's update fraction, for the row mofo alone:"),
        ("rates", "optimizer.lr", "The learning rate:"),
    ):
        done = finished(out / folder)
        if found := [*(Tried.of(run, key) for run in done), *earlier(out, key)]:
            rows = [run for run in table if folder == "rates" or run.strategy == "mofo"]
            said += [title, tried(found), *remarks(found, rows, key)]
            runs += done
    if not said:
        return "Nothing: no run of a tuning is there."
    return "\n\n".join([*said, LEGEND, *([proxy(runs)] if runs else [])])


def earlier(out: Path, key: str) -> list[Tried]:
    """Return what is left of runs of a tuning whose folders are not kept."""
    file = out / "tried.csv"
    if not file.is_file():
        return []
    rows = pd.read_csv(file, comment="#")
    rows = rows[rows.pop("key") == key].astype(object)
    return [Tried(*row) for row in rows.where(rows.notna(), None).itertuples(index=False)]


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
        f"On {', '.join(runs[0].tasks)}, of each {train} training and {validation} validation "
        f"examples; seed {seeds}. OP's standard error over examples is up to {error:.1f} points: "
        "what lies nearer to the best than that may be as good."
    )


def remarks(found: Iterable[Tried], table: Sequence[RunResults], key: str) -> list[str]:
    """Say whose best is at the end of what was tried, and which of the table's were not chosen."""
    cells, said = _cells(found), []
    ends = [
        f"{strategy} ({value:g})"
        for strategy, row in cells.items()
        if (value := _best(row).value) in (min(row), max(row))
    ]
    if ends:
        said.append(
            "At the end of what was tried, beyond which may be better: " + ", ".join(ends) + "."
        )
    used = {run.strategy: float(run.settings[key]) for run in table}
    other = [
        f"{strategy} ({value:g})"
        for strategy, value in used.items()
        if strategy in cells and value != _best(cells[strategy]).value
    ]
    if other:
        said.append(f"**The table has another value than the best for: {', '.join(other)}.**")
    blind = [f"{strategy} ({value:g})" for strategy, value in used.items() if strategy not in cells]
    if blind:
        said.append(f"**Not tried, so that nothing was chosen, for: {', '.join(blind)}.**")
    return said


def _cells(found: Iterable[Tried]) -> dict[str, dict[float, Tried]]:
    cells: dict[str, dict[float, Tried]] = {}
    for each in found:
        cells.setdefault(each.strategy, {})[each.value] = each
    return dict(sorted(cells.items()))


def _best(row: Mapping[float, Tried]) -> Tried:
    return min(row.values(), key=lambda t: (-round(t.op or 0.0, 6), t.distance or math.inf))


def beyond(found: Iterable[Tried], strategy: str) -> float | None:
    """Return the rate past a strategy's best one, if that is at the end of what was tried."""
    row = _cells(found)[strategy]
    best = _best(row).value
    return best / FACTOR if best == min(row) else best * FACTOR if best == max(row) else None


def tried(found: Iterable[Tried]) -> str:
    """Return a table of strategies and values."""
    cells = _cells(found)
    values = sorted({value for row in cells.values() for value in row})
    body = []
    for strategy, row in cells.items():
        body.append([strategy])
        for value in values:
            each = row.get(value)
            figures = () if each is None else (each.op, each.bwt, each.learned)
            text = " / ".join(map(number, figures)) or ABSENT
            body[-1].append(f"\0{text}\0" if each is _best(row) and len(row) > 1 else text)
    made = markdown_table(["strategy", *(f"{value:g}" for value in values)], body)
    return made.replace("\0", "**")


def results_of(run: RunResults) -> dict[str, Any]:
    """Return what a run's results.json holds."""
    results: dict[str, Any] = json.loads(run.path.read_text("utf-8"))
    return results


if __name__ == "__main__":
    done = [Tried.of(run, "optimizer.lr") for run in finished(Path(sys.argv[1]))]
    following = beyond(done, sys.argv[2])
    if following is not None:
        print(following)
