"""Recipes' plain mappings: parsed from YAML, laid over one another, changed key by key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from cl_mofo.config import SWEEP
from cl_mofo.errors import UserError

DEEPEST = 3
"""Mappings within mappings that a recipe has: `tasks.epochs.FOMC`."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, with 1e-5 a number, and a key that is given twice refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.YAMLError(f"the key '{key}' is given twice")
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def parsed(text: str, where: str) -> Any:
    """Return what a YAML text says.

    Raises:
        UserError: it is not YAML; the text opens with `where`.
    """
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # a tag on a wrong value raises whatever its constructor does
        raise UserError(f"{where}: not valid YAML: {error}") from error


def override(recipe: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Lay `key.subkey=value` assignments, whose values are YAML, over a recipe, the later winning.

    Raises:
        UserError: an assignment has no `=`, or its value is not YAML.
    """
    result = dict(recipe)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise UserError(f"--set {assignment}: write key=value, as in --set optimizer.lr=5e-4")
        value = parsed(text, f"--set {assignment}")
        result = merge(result, nested(".".join(parts), value))
    return result


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return the mapping in which a dotted key has a value; what `sweep.vary` holds is one key."""
    parts = key.split(".", 2 if key.startswith(f"{SWEEP}.vary.") else -1)
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def merge(
    below: Mapping[str, Any], above: Mapping[str, Any], deep: int = DEEPEST
) -> dict[str, Any]:
    """Lay one mapping over another, key by key; an empty section changes nothing.

    Args:
        below: what is covered.
        above: what wins.
        deep: how many mappings within one another are merged; more are taken whole.
    """
    merged = {**below, **above}
    for key in below.keys() & above.keys() if deep > 1 else ():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = merge(below[key], above[key], deep - 1)
        elif isinstance(below[key], Mapping) and above[key] is None and deep == DEEPEST:
            merged[key] = below[key]
    return merged


def section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a raw recipe, empty where there is none."""
    found = raw.get(name)
    return found if isinstance(found, Mapping) else {}
