"""Tables and figures over the runs that `results.json` files record.

    runs = load_runs(["outputs"])             # every run found there
    print(render(runs, "markdown"))           # strategies as rows, mean and deviation over seeds
    heat_map(runs[0], "figures/matrix.png")   # one run's R matrix
    curves(runs, "figures/curves.png")        # OP and BWT as tasks are learned
    closeness(runs, "figures/closeness.png")  # BWT against the distance from the initial model
    print(render_comparison(compare(runs, "sequential")))   # what differs by more than noise

pandas and matplotlib load when a function that needs them is called, not on import.
"""

from __future__ import annotations

from cl_mofo.report.closeness import closeness
from cl_mofo.report.comparison import Comparison, compare
from cl_mofo.report.comparison_table import render_comparison, terminal_comparison
from cl_mofo.report.draw import draw
from cl_mofo.report.figures import curves, heat_map
from cl_mofo.report.frame import summarise
from cl_mofo.report.load import load_results, load_runs, parse_results
from cl_mofo.report.matrix import matrix_markdown, matrix_table
from cl_mofo.report.results import RunResults
from cl_mofo.report.summary import CONVENTION, entries, notes
from cl_mofo.report.table import FORMATS, comparison_table, render

__all__ = [
    "CONVENTION",
    "FORMATS",
    "Comparison",
    "RunResults",
    "closeness",
    "compare",
    "comparison_table",
    "curves",
    "draw",
    "entries",
    "heat_map",
    "load_results",
    "load_runs",
    "matrix_markdown",
    "matrix_table",
    "notes",
    "parse_results",
    "render",
    "render_comparison",
    "summarise",
    "terminal_comparison",
]
