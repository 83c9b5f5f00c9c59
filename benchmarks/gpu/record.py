"""Where a GPU's results go, and how: as `benchmarks.record` has it, and by the first rank alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks import record


def results_folder() -> Path:
    """Return RESULTS or OUT, if one is set, else the folder that the page reads."""
    named = os.environ.get("RESULTS") or os.environ.get("OUT")
    return Path(named) if named else record.ROOT / "docs" / "results" / "gpu"


def write(path: Path, settings: dict[str, Any], found: dict[str, Any]) -> None:
    """Write a stage's results so far; of several ranks the first does."""
    if os.environ.get("RANK", "0") == "0":
        record.write(path, {"stage": path.stem, **record.origin(settings), **found})
