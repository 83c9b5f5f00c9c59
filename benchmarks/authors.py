"""The optimizer of MoFO's authors, from files that the user has; none of it is here."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

FRACTIONS = ("update_fraction", "fraction", "alpha", "alpha_f", "mofo_fraction", "ratio", "k")
"""What their share of the entries may be called, the likeliest first."""


def authors_optimizer(
    path: Path, named: list[tuple[str, Parameter]], fraction: float, lr: float
) -> torch.optim.Optimizer:
    """Return their optimizer for these parameters.

    Args:
        path: a Python file, or a folder in which one holds an optimizer with "mofo" in its name.
        named: parameters with their names, by which they may filter.
        fraction: the share of entries that move.
        lr: learning rate.

    Raises:
        SystemExit: no such optimizer is found, or it cannot be imported or made; it says why.
    """
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    found, reasons = None, []
    for file in files:
        if path.is_dir() and "mofo" not in file.read_text(errors="replace").lower():
            continue
        try:
            found = found or _optimizer_in(file)
        except Exception as error:
            reasons.append(f"{file.name}: {type(error).__name__}: {error}")
    if found is None:
        told = "; ".join(reasons) or "no class with mofo in its name is a torch.optim.Optimizer"
        raise SystemExit(f"{path} has no optimizer that can be taken ({told})")
    options: dict[str, Any] = {"lr": lr}
    known = inspect.signature(found).parameters
    options |= dict.fromkeys([n for n in FRACTIONS if n in known][:1], fraction)
    refused = ""
    for given in ([p for _, p in named], named):
        try:
            return found(given, **options)
        except Exception as error:
            refused = f"{type(error).__name__}: {error}"
    raise SystemExit(f"{found.__name__}{inspect.signature(found)} cannot be made: {refused}")


def _optimizer_in(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"authors_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    for value in vars(module).values():
        if (
            inspect.isclass(value)
            and issubclass(value, torch.optim.Optimizer)
            and value.__module__ == spec.name
            and "mofo" in value.__name__.lower()
        ):
            return value
    return None
