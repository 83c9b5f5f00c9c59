"""Recipes' plain mappings: parsed from YAML, laid over one another, changed key by key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as brief
from typing import Any

import yaml

from cl_mofo.errors import UserError


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
    """Apply `key.subkey=value` assignments, whose values are YAML, on a copy of a recipe.

    Raises:
        UserError: an assignment has no `=`, or its value is not YAML.
    """
    result = dict(recipe)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError(f"--set {assignment}: write key=value, as in --set optimizer.lr=5e-4")
        value = parsed(text, f"--set {assignment}")
        *sections, last = (part.strip() for part in key.split("."))
        result = assign(result, sections, last, value, f"--set {assignment}")
    return result


def assign(
    node: Mapping[str, Any], sections: Sequence[str], last: str, value: Any, where: str
) -> dict[str, Any]:
    """Return a copy of a mapping with `last` set in the section that `sections` leads to.

    Raises:
        UserError: a section on the way is a value; the text opens with `where`.
    """
    if not sections:
        return {**node, last: value}
    below = node.get(sections[0]) or {}
    if not isinstance(below, Mapping):
        raise UserError(f"{where}: '{sections[0]}' is the value {brief(below)}, not a section")
    inner = assign(below, sections[1:], last, value, where)
    return {**node, sections[0]: inner}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another, section by section; an empty section changes nothing."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], (Mapping, type(None))):
            merged[key] = {**below[key], **(above[key] or {})}
    return merged


def section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a raw recipe, empty where there is none."""
    found = raw.get(name)
    return found if isinstance(found, Mapping) else {}
