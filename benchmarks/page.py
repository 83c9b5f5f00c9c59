"""Write docs/performance.md from what the benchmarks have recorded.

    python -m benchmarks.page [--results benchmarks/results] [--gpu docs/results/gpu] [--docs docs]

Every figure on the page is out of a JSON file: of `benchmarks/run.sh` on a CPU, of
`benchmarks/gpu/run.sh` on a GPU. What no file has is marked as not measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import PLOTS
from benchmarks.record import RESULTS, ROOT, headings, said_of, shown
from benchmarks.sections import SECTIONS

GPU_RESULTS = ROOT / "docs" / "results" / "gpu"

Record = Mapping[str, Any]

OPENING = """# Performance

This page is written by `python -m benchmarks.page` from the files that the benchmarks leave; do not
change it by hand. `bash benchmarks/run.sh` measures all of the CPU's part, `bash
benchmarks/gpu/run.sh` the GPU's. Times are compared in one process and in turns, and told as
ratios: absolute times are another machine's tomorrow. `lowest` and `highest` are the range of the
turns, or of the tasks, as the text says. What was never run is marked **not measured**.
"""


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
    parser.add_argument("--gpu", type=Path, default=GPU_RESULTS)
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
