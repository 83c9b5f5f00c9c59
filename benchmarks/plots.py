"""The page's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Record = Mapping[str, Any]


def growth(record: Record, path: Path) -> None:
    """Draw a step's time over size, both logarithmic, with the fitted exponents."""
    fits = record["rows"]
    figure = Figure(figsize=(4 * len(fits), 3.2), layout="constrained")
    for axes, fit in zip(figure.subplots(1, len(fits), squeeze=False)[0], fits, strict=True):
        points = [row for row in record["more"]["Points"] if row["grows"] == fit["time over"]]
        axes.loglog([p["size"] for p in points], [p["ratio"] for p in points], marker="o")
        axes.set_xlabel(fit["time over"])
        axes.set_ylabel("a step's time over the first")
        axes.set_title(
            f"exponent {fit['exponent']:.2f}, upper half {fit['upper half']:.2f}", size=9
        )
    save(figure, path)


def strategies(record: Record, path: Path) -> None:
    """Draw each strategy's step over plain training's against the number of past tasks."""
    rows = [row for row in record["more"]["By task"] if row["name"] != "sequential"]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    sides = list(dict.fromkeys(row["side"] for row in rows))
    for axes, side in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
        for name in dict.fromkeys(row["name"] for row in rows):
            own = [row for row in rows if (row["name"], row["side"]) == (name, side)]
            axes.plot(
                [row["past tasks"] for row in own],
                [row["step vs plain"] for row in own],
                marker="o",
                label=name,
            )
        axes.set_title(side, size=9)
        axes.set_xlabel("past tasks")
        axes.set_ylabel("a step's time over plain training's")
        axes.legend(fontsize=7)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120, metadata={"Software": None})


PLOTS: Mapping[str, Callable[[Record, Path], None]] = {"growth": growth, "strategies": strategies}
"""What draws a benchmark's figure, by the benchmark's name."""
