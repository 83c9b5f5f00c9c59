"""Write docs/performance.md from what the benchmarks have recorded.

    python -m benchmarks.page [--results benchmarks/results] [--gpu docs/results/gpu] [--docs docs]

Every figure on the page is out of a JSON file: of `benchmarks/run.sh` on a CPU, of
`benchmarks/gpu/run.sh` on a GPU. What no file has is marked as not measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plots import PLOTS
from benchmarks.record import RESULTS, ROOT, headings, said_of, shown

Record = Mapping[str, Any]

OPENING = """# Performance

This page is written by `python -m benchmarks.page` from the files that the benchmarks leave; do not
change it by hand. `bash benchmarks/run.sh` measures all of the CPU's part, `bash
benchmarks/gpu/run.sh` the GPU's. Times are compared in one process and in turns, and told as
ratios: absolute times are another machine's tomorrow. `lowest` and `highest` are the range of the
turns, or of the tasks, as the text says. What was never run is marked **not measured**.
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: of the benchmark, whose records it shows.
        title: its heading.
        text: what is compared, and what a reader has to know to read the table.
        gpu: whether its records are the GPU's.
    """

    name: str
    title: str
    text: str
    gpu: bool = False


SECTIONS = (
    Section(
        "optimizer",
        "The optimizer",
        "A step of MoFO over a step of torch's fused AdamW on the same tensors. Goal on a CPU: at "
        "most 2.5 (the authors' code: 42 to 75).",
    ),
    Section(
        "training",
        "Training",
        "The sequence of tasks, in a plain loop that batches as TRACE's code does (not sorted, "
        "padded on the left, logits of all positions), in Hugging Face's Trainer, and in ours: "
        "same examples in the same steps, same precision, fused AdamW, clipping. `vs plain` and `vs "
        "Trainer` are how many times as fast the whole sequence is, `lowest` and `highest` are "
        "`vs plain` of single tasks; `loss apart` is the largest relative difference of any step's "
        "loss from the plain loop's. Goals: 1.5 times the plain loop, 1.2 times Trainer, "
        "`computed/real` tokens at most 1.05.",
    ),
    Section(
        "scoring",
        "Scoring",
        "The test sets answered in TRACE's way (batches of 4 in the data's order, up to 512 new "
        "tokens) and in ours, greedily, by the same briefly fine-tuned model in float32. `vs "
        "TRACE` is how many times as fast, `lowest` and `highest` are single tasks'. Scores and texts are "
        "compared over the answers that both ended. Goal: 4 times in default mode, scores equal.",
    ),
    Section(
        "strategies",
        "Strategies",
        "What a strategy adds to plain training, ours and Avalanche's plugins on the same model "
        "and examples, each over its own side's plain training. `task` includes what comes at a task's "
        "end. The exponent is of what a step takes more, against the number of past tasks: 1 is "
        "proportional; there is none where it takes no more.",
    ),
    Section(
        "growth",
        "How cost grows",
        "A training step of random Llamas against the length of the texts and the size of the "
        "model: the exponent b of a * size^b, fitted to all points and to the upper half of them. "
        "The optimizer's own growth stands above, that of strategies with the number of tasks too.",
    ),
    Section(
        "sharded",
        "MoFO over several ranks",
        "What the selection sends per step; see also [scale.md](scale.md).",
    ),
    Section(
        "checkpoints",
        "Checkpoints",
        "What the demo's run spends on them; see also [reliability.md](reliability.md).",
    ),
    Section(
        "optimizer",
        "GPU: the optimizer",
        "A step of MoFO over fused AdamW's on TinyLlama-1.1B's tensors. Goal at 5%: at most 1.1.",
        gpu=True,
    ),
    Section(
        "training",
        "GPU: training",
        "Random weights of TinyLlama-1.1B's shape, texts of TRACE's lengths. Goals: MoFO's "
        "training time within 0.5% of AdamW's (the paper: 4.1 to 5.0% on A800s), at least 45% model FLOP "
        "utilisation with packing.",
        gpu=True,
    ),
    Section(
        "scoring",
        "GPU: scoring",
        "As on the CPU, with random weights: answers run into their budgets, so this shows speed "
        "and nothing of scores.",
        gpu=True,
    ),
    Section(
        "selection",
        "GPU: the selection is the reference's",
        "Entries that are selected otherwise than by the reference on the host; more than 0 is a "
        "fault.",
        gpu=True,
    ),
    Section("engines", "GPU: engines", "A step under each engine; see [scale.md](scale.md).", True),
)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return all records of a folder, in the order of their files' names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def page(cpu: Sequence[Record], gpu: Sequence[Record]) -> str:
    """Return the whole page."""
    parts = [OPENING]
    for section in SECTIONS:
        records = [r for r in (gpu if section.gpu else cpu) if name_of(r) == section.name]
        parts.append(f"## {section.title}\n\n{section.text}\n")
        if not records:
            parts.append("**Not measured.**\n")
        for record in records:
            parts.append(part(record))
        if section.name in PLOTS and not section.gpu and records:
            parts.append(f"![{section.title}](images/performance-{section.name}.png)\n")
    return "\n".join(parts)


def name_of(record: Record) -> str:
    return str(record.get("benchmark") or record["stage"])


def part(record: Record) -> str:
    """Return a record's tables, and where and how they came about."""
    told = [f"`{command_of(record)}`: {said_of(record)}.\n"]
    if "mismatches" in record:
        told.append(f"Mismatching entries: {record['mismatches']}.\n")
    if rows := record.get("rows"):
        told.append(markdown(rows))
    told += [
        f"<details><summary>{title}</summary>\n\n{markdown(rows)}\n</details>\n"
        for title, rows in record.get("more", {}).items()
    ]
    return "\n".join(told)


def command_of(record: Record) -> str:
    """Return the command as one types it; a path's last part stands for it."""
    first, *rest = record["command"]
    module = "benchmarks." + ("gpu." if "stage" in record else "") + name_of(record)
    words = ["python", "-m", module] if first.endswith(".py") else [first]
    return " ".join([*words, *(f'"{word}"' if " " in word else word for word in rest)])


def markdown(rows: Sequence[Record]) -> str:
    """Return rows as a table; columns of lists and mappings stay in the file."""
    columns = [
        heading
        for heading in headings(rows)
        if not any(isinstance(row.get(heading), list | dict) for row in rows)
    ]
    number = [all(isinstance(r.get(c), int | float | None) for r in rows) for c in columns]
    lines = [columns, ["--:" if each else "---" for each in number]]
    lines += [[shown(row.get(column)) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--gpu", type=Path, default=ROOT / "docs" / "results" / "gpu")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    cpu = read(arguments.results)
    (arguments.docs / "images").mkdir(parents=True, exist_ok=True)
    for record in cpu:
        if draw := PLOTS.get(name_of(record)):
            draw(record, arguments.docs / "images" / f"performance-{name_of(record)}.png")
    (arguments.docs / "performance.md").write_text(page(cpu, read(arguments.gpu)))


if __name__ == "__main__":
    main()
