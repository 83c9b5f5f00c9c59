"""A state on disk: its tensors as safetensors, everything else as JSON; nothing is pickled.

A state is a nesting of mappings (keys are texts or integers), lists, texts, numbers, booleans, None
and tensors. It comes back equal, but that tuples come back as lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TENSORS, VALUES = "state.safetensors", "state.json"


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state into a folder, which is made if need be.

    Raises:
        TypeError: a value is none of those that a state may hold; names its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    values = _taken_apart(state, "", tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TENSORS)
    (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")


def load_state(folder: Path) -> dict[str, Any]:
    """Read back what `save_state` wrote, its tensors on the CPU."""
    tensors = load_file(folder / TENSORS)
    state: dict[str, Any] = _put_together(json.loads((folder / VALUES).read_bytes()), tensors)
    return state


def _taken_apart(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{place}"  # the number keeps apart keys that have a slash in them
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = []
        for key, below in value.items():
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise TypeError(f"state{place}: the key {key!r} is neither a text nor an integer")
            items.append([key, _taken_apart(below, f"{place}/{key}", tensors)])
        return {"mapping": items}
    if isinstance(value, list | tuple):
        return [_taken_apart(below, f"{place}/{i}", tensors) for i, below in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state{place}: a {type(value).__name__} is neither a tensor nor plain data")


def _put_together(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_together(below, tensors) for below in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _put_together(below, tensors) for key, below in value["mapping"]}
    return value
