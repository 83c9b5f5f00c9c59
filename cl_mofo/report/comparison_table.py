"""A comparison as tables: for a terminal, Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.text import Text

from cl_mofo.errors import UserError, nearest
from cl_mofo.report.comparison import Comparison, Estimate
from cl_mofo.report.layout import grid
from cl_mofo.report.summary import Stat
from cl_mofo.report.table import FORMATS, LATEX, setting_title
from cl_mofo.report.text import (
    ABSENT,
    escape_latex,
    escape_markdown,
    inert,
    markdown_table,
    number,
)


class _Table(NamedTuple):
    title: str
    head: list[str]
    body: list[list[str]]


def render_comparison(comparison: Comparison, format: str = "markdown") -> str:
    """Return a comparison as text.

    Args:
        comparison: as `compare` gives it.
        format: "markdown" or "latex", with the notes under the figures; "csv", figures alone, whose
            notes are `comparison.notes`; or "terminal" for plain text 120 columns wide.

    Raises:
        UserError: an unknown format.
    """
    if format == "csv":
        return _csv(comparison)
    if format == "markdown":
        return _markdown(comparison)
    if format == "latex":
        return _latex(comparison)
    if format == "terminal":
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(terminal_comparison(comparison))
        return capture.get()
    raise UserError(
        f"unknown format '{format}'{nearest(format, FORMATS)}. Formats: {', '.join(FORMATS)}"
    )


def terminal_comparison(comparison: Comparison) -> RenderableType:
    """Return a comparison for a terminal, for a rich console to print."""
    parts: list[RenderableType] = []
    if title := setting_title(comparison.setting):
        parts += [Text(title), Text()]
    for table in _tables(comparison):
        body = [[Text(cell) for cell in row] for row in table.body]
        parts += [Text(table.title, style="italic"), grid(table.head, body), Text()]
    parts += [Text(f"{note}.", style="dim") for note in comparison.notes]
    return Group(*parts)


def _markdown(comparison: Comparison) -> str:
    title = setting_title(comparison.setting)
    blocks = [f"**{escape_markdown(title)}**"] if title else []
    for table in _tables(comparison):
        blocks += [escape_markdown(table.title), markdown_table(table.head, table.body)]
    blocks += [f"{escape_markdown(note)}." for note in comparison.notes]
    return "\n\n".join(blocks) + "\n"


def _latex(comparison: Comparison) -> str:
    tables = _tables(comparison)
    notes = [setting_title(comparison.setting), *comparison.notes]
    blocks = []
    for i, (title, head, body) in enumerate(tables, 1):
        lines = [" & ".join([*map(escape_latex, row[:2]), *map(_math, row[2:])]) for row in body]
        said = [title, *(note for note in notes if note and i == len(tables))]
        blocks.append(
            LATEX.format(
                columns="l" + "r" * (len(head) - 1),
                head=" & ".join(map(escape_latex, head)) + r" \\",
                body="\n".join(line + r" \\" for line in lines),
                notes="\n".join(f"{escape_latex(note)}." for note in said),
            )
        )
    return "\n\n".join(blocks) + "\n"


def _math(cell: str) -> str:
    if cell == ABSENT:
        return "--"
    return "$" + cell.replace("±", r"\pm").replace(" [", r"\ [") + "$"


def _tables(comparison: Comparison) -> list[_Table]:
    runs = [
        [row.label, str(row.seed), _estimate(row.op), _estimate(row.bwt)] for row in comparison.runs
    ]
    found = [_Table("Runs", ["strategy", "seed", "OP", "BWT"], runs)]
    if not comparison.differences:
        return found
    title = f"differences from {comparison.baseline}"
    apart = [
        [
            row.label,
            str(row.seed),
            *(_estimate(row.op, signed=True), _p(row.op.p)),
            *(_estimate(row.bwt, signed=True), _p(row.bwt.p)),
        ]
        for row in comparison.differences
    ]
    means = [
        [row.label, str(len(row.seeds)), _stat(row.op), _stat(row.bwt)] for row in comparison.means
    ]
    return [
        *found,
        _Table(f"Seed by seed, {title}", ["strategy", "seed", "OP", "p", "BWT", "p"], apart),
        _Table(f"Over seeds, {title}", ["strategy", "n", "OP", "BWT"], means),
    ]


def _estimate(of: Estimate, *, signed: bool = False) -> str:
    show = _signed if signed else number
    return ABSENT if of.value is None else f"{show(of.value)} [{show(of.low)}, {show(of.high)}]"


def _stat(of: Stat) -> str:
    return _signed(of.mean) if of.std is None else f"{_signed(of.mean)} ± {number(of.std)}"


def _signed(value: float | None) -> str:
    shown = number(value)
    return f"+{shown}" if value is not None and round(value, 1) > 0 else shown


def _p(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _csv(comparison: Comparison) -> str:
    """Return every figure with four decimals, empty cells for none."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    ends = ("", "_low", "_high", "_p", "_std")
    write(["row", "strategy", "seeds", *(f"{name}{end}" for name in ("OP", "BWT") for end in ends)])
    for kind, rows in (("run", comparison.runs), ("difference", comparison.differences)):
        for row in rows:
            figures = [*row.op, None, *row.bwt, None]
            write([kind, inert(row.label), row.seed, *map(_decimals, figures)])
    for mean in comparison.means:
        figures = [v for of in (mean.op, mean.bwt) for v in (of.mean, None, None, None, of.std)]
        seeds = " ".join(map(str, mean.seeds))
        write(["mean difference", inert(mean.label), seeds, *map(_decimals, figures)])
    return out.getvalue()


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
