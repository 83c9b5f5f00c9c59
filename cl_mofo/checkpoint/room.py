"""How much room checkpoints need."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cl_mofo.errors import UserError
from cl_mofo.folder import CHECKPOINTS

MOMENTS = 2
"""Tensors of a parameter's shape that Adam and its kin keep."""


def size_of(state: Any) -> int:
    """Return the bytes of all tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(size_of, state.values()))
    return sum(map(size_of, state)) if isinstance(state, list | tuple) else 0


def room_for(state: Any, folder: Path) -> str:
    """Say how much room a rank's state needs, and how much there is."""
    told = f"This rank's needs {gigabytes(size_of(state))}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return told
    return f"{told}; {gigabytes(free)} are free"


def check_room(folder: Path, trained: int, parameters: int, keep: int, *, save_model: bool) -> None:
    """Refuse to begin where checkpoints and the model cannot have room.

    Args:
        folder: the run's.
        trained: entries of all trained parameters.
        parameters: entries of all parameters.
        keep: how many checkpoints are kept; one more is written before the oldest goes.
        save_model: whether the model is written at the end.

    Raises:
        UserError: naming what is needed at least, and what is free.
    """
    each = 4 * trained * (1 + MOMENTS)
    there = sum(1 for _ in folder.glob(f"{CHECKPOINTS}/*/checkpoint.json"))
    needed = each * max(1, keep + 1 - there) + (4 * parameters if save_model else 0)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < needed:
        raise UserError(
            f"{folder}: the run needs at least {gigabytes(needed)} for its checkpoints and its "
            f"model, and {gigabytes(free)} are free. Free some room, name another --out, keep "
            f"fewer checkpoints (checkpoint.keep={keep} now), or leave the model out "
            f"(save_model=false)"
        )


def gigabytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
