"""The R matrix of one run as a table: a row for every task learned, a column for every task."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from cl_mofo.report.layout import Fitting, grid
from cl_mofo.report.results import BWT_CONVENTION, OP_CONVENTION, Cells, RunResults
from cl_mofo.report.text import escape_markdown, markdown_table, number

MATRIX_CONVENTION = (
    f"Row t: percent on each task after learning tasks 1 to t. {OP_CONVENTION}; {BWT_CONVENTION}."
)


def matrix_table(results: RunResults) -> RenderableType:
    """Return the matrix for a terminal; TRACE's eight tasks fit 100 columns, and narrowly 80.

    Rows not yet measured are left out, so that it serves a run under way. Scores on tasks not yet
    learned, where they were measured, are dim: they enter neither OP nor BWT.
    """
    labels, short_labels, body = [], [], []
    for t, label, scores, figures in _rows(results):
        cells = [
            Text(number(score), style="" if i <= t else "dim") for i, score in enumerate(scores, 1)
        ]
        labels.append(label)
        short_labels.append(str(t))
        body.append([*cells, *(Text(number(figure), style="bold") for figure in figures)])
    wide = [[Text(label), *row] for label, row in zip(labels, body, strict=True)]
    narrow = [[Text(label), *row] for label, row in zip(short_labels, body, strict=True)]
    columns = [*results.tasks, "OP", "BWT"]
    notes = " ".join([MATRIX_CONVENTION, _metrics(results) if results.finished else ""]).strip()
    table = Fitting(
        [grid(["after learning", *columns], wide)],
        [grid(["t", *columns], narrow, gap=1)],
    )
    # As a table's own title it would be broken at the table's width.
    return Group(Text(matrix_title(results), style="italic"), table, Text(notes, style="dim"))


def matrix_markdown(results: RunResults) -> str:
    """Return the matrix as Markdown, with what `matrix_table` shows."""
    head = ["after learning", *results.tasks, "OP", "BWT"]
    rows = [
        [label, *map(number, scores), *map(number, figures)]
        for _, label, scores, figures in _rows(results)
    ]
    title = f"**{escape_markdown(matrix_title(results))}**"
    metrics = escape_markdown(_metrics(results))
    parts = (title, markdown_table(head, rows), MATRIX_CONVENTION, metrics)
    return "\n\n".join(part for part in parts if part) + "\n"


def matrix_title(results: RunResults) -> str:
    """Return what the matrix is of, and how far the run has come if it is under way."""
    parts = [results.strategy, f"seed {results.seed}", results.suite, results.model]
    if not results.finished:
        parts.append(f"{results.learned_tasks} of {len(results.tasks)} tasks learned")
    return " · ".join(part for part in parts if part)


def _rows(results: RunResults) -> Iterator[tuple[int, str, Cells, Cells]]:
    """Yield the tasks learned, the label, the scores, and (OP, BWT), for every measured row."""
    if results.initial is not None:
        yield 0, "nothing", results.initial, (None, None)
    for t, (op, bwt) in enumerate(zip(results.op, results.bwt, strict=True), 1):
        scores = results.scores[t - 1]
        if any(score is not None for score in scores):
            yield t, f"{t} {results.tasks[t - 1]}", scores, (op, bwt)


def _metrics(results: RunResults) -> str:
    """Say which metric the tasks are scored by: `accuracy: C-STANCE, FOMC; sari: 20Minuten.`."""
    tasks_by_metric: dict[str, list[str]] = {}
    for task in results.tasks:
        if task in results.headline:
            tasks_by_metric.setdefault(results.headline[task], []).append(task)
    said = "; ".join(f"{metric}: {', '.join(tasks)}" for metric, tasks in tasks_by_metric.items())
    cut = "Answers were generated only until these were settled." if results.cut else ""
    return " ".join(part for part in (f"{said}." if said else "", cut) if part)
