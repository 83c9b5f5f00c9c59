"""All figures over some runs, into one folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from cl_mofo.report.closeness import closeness
from cl_mofo.report.figures import curves, heat_map
from cl_mofo.report.results import RunResults

LONGEST_FILE_NAME = 50
"""Characters of a run's name in a file's: up to 200 of the 255 bytes that file systems allow."""


def draw(runs: Sequence[RunResults], folder: str | Path) -> list[str]:
    """Draw each run's heat map and the curves of all into a folder; return the files' names.

    Raises:
        UserError: a file cannot be written.
    """
    names: list[str] = []
    for run in runs:
        name = f"matrix-{_file_name(run.name)}"
        endings = itertools.chain([""], (f"-{i}" for i in itertools.count(2)))
        taken = {other.lower() for other in names}
        names.append(next(n for end in endings if (n := name + end).lower() not in taken))
        heat_map(run, Path(folder) / f"{names[-1]}.png")
    curves(runs, Path(folder) / "curves.png")
    names.append("curves")
    if any(run.distances for run in runs):
        closeness(runs, Path(folder) / "closeness.png")
        names.append("closeness")
    return [f"{name}.png" for name in names]


def _file_name(name: str) -> str:
    """Return what a file on any system may be called: no separator, no control, not too long."""
    return re.sub(r'[\\/:*?"<>|]', "_", name)[:LONGEST_FILE_NAME]
