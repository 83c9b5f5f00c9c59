"""Write docs/results/table2-smollm2.md from the runs that `benchmarks/table2/run.sh` makes.

    python -m benchmarks.table2.page OUT [--docs docs/results] [--opening FILE.md]

OUT has the folders `table`, `rates` and `fractions`, as they were made or as benchmarks.table2.kept
left them. Every figure on the page is out of their files, and every verdict follows from figures by
the rule that the page states; OUT/reading.md, if it is there, sums them up in words. opening.md
says how the runs were made, if they are of the recipe for a CPU; of others FILE.md does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.table2.choices import choices, finished, results_of
from benchmarks.table2.orderings import differences, orderings
from cl_mofo.errors import UserError
from cl_mofo.recipes import read_recipe
from cl_mofo.report import (
    RunResults,
    closeness,
    compare,
    entries,
    load_runs,
    render_comparison,
)
from cl_mofo.report.summary import CONVENTION, Entry, Stat
from cl_mofo.report.text import ABSENT, markdown_table, number

PAGE, PICTURE = "table2-smollm2.md", "table2-smollm2-closeness.png"
BASELINE = "sequential"
RECIPE = "table2-smollm2-cpu"
"""What opening.md describes."""


def main(out: Path, docs: Path, opening: Path | None = None) -> None:
    """Write the page and its picture.

    Raises:
        SystemExit: nothing says how the runs were made.
    """
    rows = [row["strategy"] for row in read_recipe(RECIPE)["sweep"]["rows"]]
    found = load_runs([out / "table"])
    runs = sorted(found, key=lambda run: rows.index(run.strategy) if run.strategy in rows else 99)
    if opening is None:
        _check_recipe(runs)
        opening = Path(__file__).parent / "opening.md"
    docs.mkdir(parents=True, exist_ok=True)
    closeness(runs, docs / PICTURE)
    parts = [
        opening.read_text("utf-8").strip(),
        made(runs),
        *read(out / "reading.md"),
        "## The table\n\n" + table(runs, finished(out / "before")),
        "## The paper's orderings\n\n" + orderings(runs),
        "## Is it more than noise?\n\n" + noise(runs),
        *one_rate(out, runs),
        "## Closer means less forgotten?\n\n" + nearness(runs),
        "## What was chosen on validation data\n\n" + choices(out, runs),
        "## Manifest\n\n" + manifest(runs),
    ]
    (docs / PAGE).write_text("\n\n".join(parts) + "\n", "utf-8")
    print(f"{docs / PAGE}: {len(runs)} runs")


def read(file: Path) -> list[str]:
    """Return what somebody wrote who has read these runs' figures, if somebody has."""
    return ["## In short\n\n" + file.read_text("utf-8").strip()] if file.is_file() else []


def _check_recipe(runs: Sequence[RunResults]) -> None:
    recipe = read_recipe(RECIPE)
    for section, key in (("data", "train_limit"), ("tasks", "epochs"), ("optimizer", "batch_size")):
        for run in runs:
            told = run.settings.get(f"{section}.{key}")
            if told != json.dumps(recipe[section][key]):
                sys.exit(
                    f"{run.path.parent}: {section}.{key} is {told}, so it is no run of {RECIPE}, "
                    f"which the page's opening describes. Describe the runs in --opening FILE.md"
                )


def made(runs: Sequence[RunResults]) -> str:
    """Say how many runs there are, and how long they took."""
    done = [run for run in runs if run.finished]
    hours = sum(sum(results_of(run)["seconds"].values()) for run in done) / 3600
    said = f"{len(done)} runs, {hours:.1f} hours in all if they had been made one after another."
    missing = len(runs) - len(done)
    return said + (f" {missing} more have begun and are not done." if missing else "")


def table(runs: Sequence[RunResults], before: Sequence[RunResults]) -> str:
    """Return our table beside the paper's, and the final scores of each task.

    Args:
        runs: the table's.
        before: one that scored the model before any training, if there is one.
    """
    done = _done(runs)
    final = [[entry.strategy, *map(_mean, (entry.op, *entry.final))] for entry in done]
    for scores in (run.initial for run in before if run.initial):
        cells = [number(score) for score in (fmean(scores), *scores)]
        final.insert(0, ["before any training", *cells])
    return (
        f"{strategies(done)}\n\n{CONVENTION}. D = mean over tensors of the relative "
        "change from the initial weights; perplexity on prose, before training and after the last "
        "task. The paper's figures are of TinyLlama-1.1B on 5000 examples a task: compare orders, "
        "not levels.\n\nFinal scores by task:\n\n"
        + markdown_table(["strategy", "mean", *done[0].setting.tasks], final)
    )


def _done(runs: Sequence[RunResults]) -> list[Entry]:
    return [entry for entry in entries(runs, paper=True) if entry.finished and entry.runs]


def strategies(done: Sequence[Entry]) -> str:
    """Return a row of means and standard deviations for each strategy."""
    head = ["strategy", "n", "OP", "BWT", "learned", "paper OP", "paper BWT", "D x 1000"]
    head += ["perplexity before", "after"]
    body = []
    for entry in done:
        before, after = entry.perplexities
        far = Stat(*(None if v is None else 1000 * v for v in entry.distance))
        body.append(
            [
                entry.strategy,
                str(len(entry.runs)),
                *map(_mean, (entry.op, entry.bwt, entry.learned)),
                *(
                    [number(entry.paper.op), number(entry.paper.bwt)]
                    if entry.paper
                    else [ABSENT] * 2
                ),
                *(_mean(s, 2) for s in (far, before, after)),
            ]
        )
    return markdown_table(head, body)


def one_rate(out: Path, runs: Sequence[RunResults]) -> list[str]:
    """Return a section on the baseline at MoFO's learning rate, if `out` has such runs."""
    same = finished(out / "same_rate")
    rates = {run.settings["optimizer.lr"] for run in same}
    mofo = [r for r in runs if r.strategy == "mofo" and r.settings["optimizer.lr"] in rates]
    if not same or not mofo:
        return []
    both = [*same, *mofo]
    op, bwt = (
        ", ".join(f"{value:+.1f}" for value in differences(both, "mofo", BASELINE, name))
        for name in ("op", "bwt")
    )
    return [
        "## At one learning rate\n\nThe table has each strategy at the rate that suits it. Where "
        f"sequential fine-tuning has MoFO's, {', '.join(f'{float(r):g}' for r in rates)}:\n\n"
        f"{strategies(_done(both))}\n\nMoFO minus sequential, seed by seed: OP {op}; BWT {bwt}."
    ]


def noise(runs: Sequence[RunResults]) -> str:
    """Return intervals of every run, and tests against the baseline seed by seed."""
    _, tables = render_comparison(compare(runs, BASELINE)).split("\n\n", 1)  # not the model's path
    return tables.strip()


def nearness(runs: Sequence[RunResults]) -> str:
    """Return the picture of forgetting against distance, and how strongly the two go together."""
    done = [r for r in runs if r.finished and r.distance is not None]
    lines = [f"![BWT and perplexity against the distance]({PICTURE})"]
    full = [run for run in done if "lora" not in run.strategy]
    for said, chosen in (("all runs", done), ("runs without LoRA", full)):
        if len(chosen) < 4:
            continue
        far = [run.distance for run in chosen]
        bwt = [run.bwt[-1] for run in chosen]
        lines.append(
            f"Spearman's correlation of D and BWT over {said} ({len(chosen)}): {rank(far, bwt)}."
        )
        told = [run for run in chosen if run.perplexities]
        if len(told) > 3:
            after = [run.perplexities[1] for run in told]
            far = [run.distance for run in told]
            lines[-1] += f" Of D and the perplexity afterwards: {rank(far, after)}."
    return "\n\n".join(lines)


def rank(xs: Sequence[Any], ys: Sequence[Any]) -> str:
    """Return Spearman's correlation, or a dash where all of one are equal."""
    from scipy.stats import spearmanr

    if min(len({*xs}), len({*ys})) < 2:
        return ABSENT
    return f"{spearmanr(xs, ys).statistic:+.2f}"


def manifest(runs: Sequence[RunResults]) -> str:
    """Return versions, commits, hardware and hashes of the runs."""
    kept = [json.loads((run.path.parent / "manifest.json").read_text("utf-8")) for run in runs]
    seeds = sorted({run.seed for run in runs})
    dates = [k["started"][:10] for k in kept]
    lines = {
        "dates": " to ".join(sorted({min(dates), max(dates)})),
        "commits": ", ".join(sorted({str(k["commit"])[:12] for k in kept})),
        "hardware": "; ".join(sorted({_hardware(k["hardware"]) for k in kept})),
        "versions": "; ".join(sorted({_listed(k["versions"]) for k in kept})),
        "model": "; ".join(
            sorted({f"SHA-256 of its tensors {k['model']['sha256']}" for k in kept})
        ),
        "seeds": ", ".join(map(str, seeds)),
    }
    data = {(name, digest) for k in kept for name, digest in k["data"].items()}
    said = "\n".join(f"- {key}: {value}" for key, value in lines.items())
    hashes = "\n".join(f"{digest}  {name}" for name, digest in sorted(data))
    folded = f"<details><summary>SHA-256 of the data</summary>\n\n```\n{hashes}\n```\n\n</details>"
    return f"{said}\n\n{folded}"


def _hardware(kept: Any) -> str:
    return _listed(kept) if isinstance(kept, Mapping) else str(kept)


def _listed(kept: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in kept.items() if value is not None)


def _mean(figure: Stat, digits: int = 1) -> str:
    if figure.mean is None:
        return ABSENT
    spread = "" if figure.std is None else f" ± {figure.std:.{digits}f}"
    return f"{figure.mean:.{digits}f}{spread}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs/results"))
    parser.add_argument("--opening", type=Path)
    given = parser.parse_args()
    try:
        main(given.out, given.docs, given.opening)
    except UserError as error:
        sys.exit(str(error))
