"""Figures: the R matrix of one run as a heat map, and OP and BWT as tasks are learned.

They are drawn on `matplotlib.figure.Figure` alone, so no backend is chosen and nothing global
changes; the same runs give the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_mofo.errors import UserError
from cl_mofo.report.matrix import matrix_title
from cl_mofo.report.results import BWT_CONVENTION, OP_CONVENTION, Cells, RunResults
from cl_mofo.report.summary import Entry, Setting, entries, stat
from cl_mofo.report.text import break_name, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
_MOST = 60.0  # inches: a matrix of very many tasks stays within what a PNG can hold

# Okabe and Ito's palette, told apart with any common colour vision; its yellow is too pale for a
# line on white, and black is left to the text. Markers differ too, for print without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP*X"
SMALL: Any = {"fontsize": "x-small", "color": "0.3", "parse_math": False}


def heat_map(results: RunResults, path: str | Path) -> None:
    """Draw the R matrix of a run to a PNG, each cell with its score, OP and BWT at the right.

    The colour scale is 0 to 100 percent, so that maps of different runs can be compared.

    Args:
        results: the run, finished or not.
        path: the PNG to write; folders on the way are made.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    T = len(results.tasks)
    labels = [f"{t} {task}" for t, task in enumerate(results.tasks, 1)]
    rows: list[Cells] = list(results.scores)
    figures = [*zip(results.op, results.bwt, strict=True)]
    figures += [(None, None)] * (T - len(figures))
    if results.initial is not None:
        labels, rows = ["nothing", *labels], [results.initial, *rows]
        figures = [(None, None), *figures]
    width, height = max(6.0, 3.2 + 0.75 * T), 1.9 + 0.42 * len(rows)
    figure = Figure(figsize=(min(width, _MOST), min(height, _MOST)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _colour_cells(axes, rows)
    for y, (row, pair) in enumerate(zip(rows, figures, strict=True)):
        for x, cell in enumerate((*row, *pair)):
            if cell is not None:
                colour = "white" if x < T and cell < 45 else "black"
                axes.text(x, y, number(cell), ha="center", va="center", color=colour)
    axes.set_xlim(-0.5, T + 1.5)  # two columns more than the matrix, for OP and BWT
    names = [*map(break_name, results.tasks), "OP", "BWT"]
    axes.set_xticks(range(T + 2), names, parse_math=False)
    axes.set_yticks(range(len(rows)), labels, parse_math=False)
    axes.set_ylabel("after learning")
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.suptitle(textwrap.fill(matrix_title(results), int(width * 11)), parse_math=False)
    figure.supxlabel(textwrap.fill(f"{OP_CONVENTION}; {BWT_CONVENTION}", int(width * 15)), **SMALL)
    save(figure, path)


def _colour_cells(axes: Axes, rows: Sequence[Cells]) -> None:
    from matplotlib import colormaps

    nan = float("nan")
    axes.imshow(
        [[nan if cell is None else cell for cell in row] for row in rows],
        cmap=colormaps["cividis"].with_extremes(bad="0.94"),
        vmin=0,
        vmax=100,
        aspect="auto",
    )
    bottom, right = len(rows) - 0.5, len(rows[0]) - 0.5
    axes.vlines([x + 0.5 for x in range(len(rows[0]))], -0.5, bottom, colors="white")
    axes.hlines([y + 0.5 for y in range(len(rows) - 1)], -0.5, right, colors="white")


def curves(runs: Sequence[RunResults], path: str | Path) -> None:
    """Draw OP and BWT against the number of tasks learned to a PNG, one line per strategy.

    Runs are grouped as in the report's table: the line is the mean over seeds, the band around it
    one sample standard deviation. A run that stands alone there does so here; unfinished ones are
    dashed.

    Args:
        runs: the runs, as `load_runs` gives them.
        path: the PNG to write; folders on the way are made.

    Raises:
        UserError: there is no run, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    table = entries(runs)
    if not table:
        raise UserError("no run to draw")
    settings = list(dict.fromkeys(entry.setting for entry in table))
    names = [label(entry, settings) for entry in table]
    columns = max(1, min(4, 120 // (8 + max(map(len, names)))))
    height = 4.3 + 0.25 * -(-len(names) // columns)
    figure = Figure(figsize=(10.5, min(height, _MOST)), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, entry in enumerate(table):
        _curve(left, entry, [run.op for run in entry.runs], i)
        _curve(right, entry, [run.bwt for run in entry.runs], i)
    right.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    orders = list(dict.fromkeys(setting.tasks for setting in settings))
    for axes, name, unit in ((left, "OP", "percent"), (right, "BWT", "points")):
        axes.set_title(name)
        axes.set_ylabel(unit)
        _number_tasks(axes, orders)
    legend = figure.legend(
        left.get_lines(), names, loc="outside upper center", ncols=columns, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    band = "; band: mean ± sample standard deviation (n-1) over seeds"
    shown = band if any(len(entry.runs) > 1 for entry in table) else ""
    figure.supxlabel(f"{OP_CONVENTION}; {BWT_CONVENTION}{shown}", **SMALL)
    save(figure, path)


def _number_tasks(axes: Axes, orders: Sequence[tuple[str, ...]]) -> None:
    """Put the number of tasks learned below a panel, with their names if all runs agree on them."""
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    most = max(map(len, orders))
    ticks = range(1, most + 1)
    axes.set_xlim(0.7, most + 0.3)
    axes.set_xlabel("tasks learned")
    if len(orders) == 1:
        names = [f"{t}\n{break_name(task)}" for t, task in zip(ticks, orders[0], strict=True)]
        axes.set_xticks(ticks, names, parse_math=False, fontsize=7)
    else:
        axes.set_xticks(ticks)


def _curve(axes: Axes, entry: Entry, values: Sequence[Cells], i: int) -> None:
    stats = [stat(column) for column in zip(*values, strict=True)]
    xs = list(range(1, len(stats) + 1))
    nan = float("nan")
    means = [nan if s.mean is None else s.mean for s in stats]
    spread = [nan if s.std is None else s.std for s in stats]
    colour = COLOURS[i % len(COLOURS)]
    axes.plot(
        xs,
        means,
        color=colour,
        marker=MARKERS[i % len(MARKERS)],
        linestyle="-" if entry.finished else "--",
    )
    if len(entry.runs) > 1:
        low = [m - s for m, s in zip(means, spread, strict=True)]
        high = [m + s for m, s in zip(means, spread, strict=True)]
        axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)


def label(entry: Entry, settings: Sequence[Setting]) -> str:
    """Name a line: the strategy, and of its setting and runs what sets it apart."""
    setting = entry.setting
    parts = [entry.variant, entry.alone]
    parts += [setting.suite] * (len({s.suite for s in settings}) > 1)
    parts += [setting.model] * (len({s.model for s in settings}) > 1)
    if len({s.tasks for s in settings}) > 1:
        parts.append(f"{len(setting.tasks)} tasks from {setting.tasks[0]}")
    parts += ["unfinished"] * (not entry.finished)
    parts += [f"{len(entry.runs)} seeds"] * (len(entry.runs) > 1)
    said = ", ".join(part for part in parts if part)
    label = f"{entry.strategy} ({said})" if said else entry.strategy
    return f" {label}"  # a label that began with an underscore would be left out


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a PNG, without time or version; folders on the way are made.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
