"""Where results go, and what is said with them: when, on what, with which versions."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from cl_mofo.manifest import manifest


def results_folder() -> Path:
    return Path(os.environ.get("RESULTS") or os.environ.get("OUT") or "gpu-results")


def write(path: Path, settings: dict[str, Any], found: dict[str, Any]) -> None:
    """Write a stage's results so far; of several ranks the first does, and prints them."""
    if os.environ.get("RANK", "0") != "0":
        return
    origin = manifest({}, {})
    keep = ("started", "versions", "commit", "hardware", "command")
    record = {
        "stage": path.stem,
        "date": origin["started"],
        **{key: origin[key] for key in keep[1:]},
        "cuda": torch.version.cuda,
        "settings": {key: str(value) for key, value in settings.items()},
        **found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
