"""What is needed to trust a run's figures later: versions, code, data, hardware, times."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "cl-mofo",
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "tokenizers",
    "datasets",
    "avalanche-lib",
    "pandas",
    "numpy",
    "nltk",
    "sacrebleu",
)


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def manifest(
    data_hashes: Mapping[str, str], model: Mapping[str, Any], ranks: int = 1
) -> dict[str, Any]:
    """Return the record of where and with what a run was made.

    Args:
        data_hashes: SHA-256 of each data file, before limits.
        model: name, parameters, and whatever else identifies the model.
        ranks: how many processes made the run together.
    """
    return {
        "started": now(),
        "versions": {"python": platform.python_version()} | versions(),
        "commit": _commit(),
        "model": dict(model),
        "data": dict(data_hashes),
        "hardware": _hardware(),
        "ranks": ranks,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that figures may depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Return the commit of the checkout this package runs from, "-dirty" if it was changed."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found


def cpu_name() -> str:
    """Return what this machine's processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
