"""A figure: what was forgotten against the distance from the initial model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cl_mofo.errors import UserError
from cl_mofo.report.figures import COLOURS, DPI, MARKERS, SMALL, label, save
from cl_mofo.report.results import BWT_CONVENTION, RunResults
from cl_mofo.report.summary import entries


def closeness(runs: Sequence[RunResults], path: str | Path) -> None:
    """Draw what was forgotten against the distance from the initial model to a PNG, a run a point.

    On the left BWT; on the right, where it was measured, how many times as high the perplexity on
    prose has become. The MoFO paper's claim is that both get worse with the distance (arXiv
    2407.20999, section 3). Unfinished runs, and runs without a distance, are left out.

    Raises:
        UserError: no finished run has a distance, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    table = [entry for entry in entries(runs) if entry.finished]
    settings = list(dict.fromkeys(entry.setting for entry in table))
    points = [
        (label(entry, settings), [run for run in entry.runs if run.distance is not None])
        for entry in table
    ]
    points = [(name, there) for name, there in points if there]
    if not points:
        raise UserError("no finished run has a distance to draw")
    farthest = max(run.distance or 0.0 for _, there in points for run in there)
    grown = any(run.perplexities for _, there in points for run in there)
    figure = Figure(figsize=(10.5 if grown else 6.5, 4.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2 if grown else 1, squeeze=False)[0]
    for i, (name, there) in enumerate(points):
        look: Any = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        look |= {"s": 42, "alpha": 0.85, "linewidths": 0}
        bwt = [(run.distance, run.bwt[-1]) for run in there if run.bwt[-1] is not None]
        panels[0].scatter([x for x, _ in bwt], [y for _, y in bwt], label=name, **look)
        if grown:
            told = [(run.distance, run.perplexities) for run in there if run.perplexities]
            ratios = [after / before for _, (before, after) in told]
            panels[1].scatter([x for x, _ in told], ratios, **look)
    for axes, title, neutral in zip(
        panels,
        ("BWT, points", "perplexity on prose, times that before training"),
        (0, 1),
        strict=False,
    ):
        axes.set_title(title, fontsize="medium")
        axes.axhline(neutral, color="0.6", linewidth=0.8, zorder=0)
        axes.grid(color="0.93", zorder=0)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("distance to the initial weights, D")
        axes.set_xlim(0, 1.06 * farthest or 1)
    legend = figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    meaning = f"D = mean over tensors of the relative change; {BWT_CONVENTION}"
    figure.supxlabel(meaning, **SMALL)
    save(figure, path)
