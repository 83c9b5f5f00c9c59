"""What a benchmark leaves: a table on the terminal, and a JSON file with all that it depends on.

The page docs/performance.md is made from these files (`python -m benchmarks.page`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from cl_mofo.manifest import manifest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Row = Mapping[str, Any]


def record(
    name: str,
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    more: Mapping[str, Sequence[Row]] | None = None,
    out: Path | None = None,
    **found: Any,
) -> dict[str, Any]:
    """Print a benchmark's tables, write `<name>.json`, and return what it holds.

    Args:
        name: of the benchmark, also its file's.
        settings: what it was run with; of paths only the last part is kept.
        rows: its main table: mappings from headings to strings, numbers, truth values or None.
        more: further tables, by title.
        out: the file to write instead, or its folder.
        found: whatever else is worth keeping, such as every single time.
    """
    kept = origin(settings) | {"rows": [dict(row) for row in rows]}
    kept |= {"more": {title: [dict(row) for row in each] for title, each in (more or {}).items()}}
    kept = {"benchmark": name, **kept, **found}
    write(file_of(name, out), kept)
    console = Console(width=140)
    for title, each in {name: rows, **kept["more"]}.items():
        console.print(printed(title, each))
    console.print(said_of(kept))
    return kept


def file_of(name: str, out: Path | None) -> Path:
    """Return the file that a benchmark writes."""
    if out is None or out.suffix != ".json":
        return (out or RESULTS) / f"{name}.json"
    return out


def write(path: Path, kept: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return when, on what and with which versions something is measured."""
    made = manifest({}, {})
    return {
        "date": made["started"],
        "versions": made["versions"],
        "commit": made["commit"],
        "hardware": made["hardware"],
        "command": [Path(word).name if "/" in word else word for word in made["command"]],
        "cuda": torch.version.cuda,
        "settings": {key: plain(value) for key, value in settings.items()},
    }


def plain(value: Any) -> Any:
    """Return a setting as JSON has it: of a path its last part, for where it lay says nothing."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        return Path(value).name if "/" in value else value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, int | float | None) else str(value)


def headings(rows: Sequence[Row]) -> list[str]:
    """Return the headings of all rows, in the order they first occur."""
    return list(dict.fromkeys(heading for row in rows for heading in row))


def shown(value: Any) -> str:
    """Return a table's entry as text: three significant digits, "-" for what there is none of."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def printed(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, box=box.SIMPLE)
    for heading in headings(rows):
        numbers = all(isinstance(row.get(heading), int | float | None) for row in rows)
        table.add_column(heading, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(shown(row.get(heading)) for heading in headings(rows)))
    return table


def said_of(kept: Mapping[str, Any]) -> str:
    """Return in a line where and with what a record was made."""
    hardware, versions = kept["hardware"], kept["versions"]
    gpu = f"{hardware['gpu']}, " if "gpu" in hardware else ""
    packages = ", ".join(
        f"{package} {versions[package]}"
        for package in ("python", "torch", "transformers", "avalanche-lib")
        if package in versions
    )
    commit, changed, _ = (kept["commit"] or "unknown").partition("-dirty")
    return (
        f"{kept['date'][:10]}; {gpu}{hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['threads']} threads; {packages}; "
        f"commit {commit[:12]}" + (" with changes" if changed else "")
    )
