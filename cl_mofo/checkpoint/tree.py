"""A state as plain values and tensors, and back.

A state is a nesting of mappings (keys are texts or integers), lists, texts, numbers, booleans,
None, tensors, and `Parts`. It comes back equal, but that tuples come back as lists and `Parts` as
plain mappings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cl_mofo.parts import Parts, Span

Place = tuple[str | int, ...]
"""The keys that lead to a value within a state."""


def taken_apart(
    state: Any, tensors: dict[str, torch.Tensor], spans: Mapping[str, Span], place: str = ""
) -> Any:
    """Return a state as JSON can hold it, its tensors put into `tensors` under names of their own.

    Args:
        state: the state.
        tensors: gets the tensors.
        spans: what this rank's parts are of each parameter; it has all of one that is not here.
        place: where the state lies within a larger one.

    Raises:
        TypeError: a value is none of those that a state may hold; names its place.
    """
    if isinstance(state, torch.Tensor):
        name = f"{len(tensors)}{place}"  # the number keeps apart keys that have a slash in them
        tensors[name] = state.detach()
        return {"tensor": name}
    if isinstance(state, Parts):
        entries = []
        for key, part in state.items():
            leaf = taken_apart(part, tensors, spans, f"{place}/{key}")
            start = spans[key].start if key in spans else 0
            entries.append([key, leaf["tensor"], start, part.numel()])
        return {"parts": entries}
    if isinstance(state, Mapping):
        items = []
        for key, below in state.items():
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise TypeError(f"state{place}: the key {key!r} is neither a text nor an integer")
            items.append([key, taken_apart(below, tensors, spans, f"{place}/{key}")])
        return {"mapping": items}
    if isinstance(state, list | tuple):
        return [taken_apart(b, tensors, spans, f"{place}/{i}") for i, b in enumerate(state)]
    if isinstance(state, float) and not math.isfinite(state):
        return {"float": repr(state)}  # JSON has none of these
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"state{place}: a {type(state).__name__} is neither a tensor nor plain data")


def put_together(
    values: Any,
    tensor: Callable[[str], torch.Tensor],
    parts: Callable[[Place, Sequence[Any]], dict[str, torch.Tensor]],
    place: Place = (),
) -> Any:
    """Return the state that `taken_apart` took apart.

    Args:
        values: what it returned.
        tensor: gives a tensor by its name.
        parts: gives the tensors of a `Parts` by place and entries.
        place: where the values lie within larger ones.
    """
    if isinstance(values, list):
        return [put_together(b, tensor, parts, (*place, i)) for i, b in enumerate(values)]
    if isinstance(values, dict):
        if "tensor" in values:
            return tensor(values["tensor"])
        if "parts" in values:
            return parts(place, values["parts"])
        if "float" in values:
            return float(values["float"])
        return {
            key: put_together(below, tensor, parts, (*place, key))
            for key, below in values["mapping"]
        }
    return values


def parts_in(values: Any, place: Place = ()) -> Iterator[tuple[Place, Sequence[Any]]]:
    """Yield the place and the entries of every `Parts` in what `taken_apart` returned."""
    if isinstance(values, list):
        for i, below in enumerate(values):
            yield from parts_in(below, (*place, i))
    elif isinstance(values, dict):
        if "parts" in values:
            yield place, values["parts"]
        for key, below in values.get("mapping", ()):
            yield from parts_in(below, (*place, key))
