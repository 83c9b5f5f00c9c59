"""Recipes as mappings: built in, from files, from options and `--set`; and back to a mapping."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import yaml

from cl_mofo.config import EMBEDDED, TINY, Recipe
from cl_mofo.errors import UserError, nearest

DEFAULT_RECIPE = "trace-mini"
SUITE_KEYS = {"data", "tasks", "evaluation"}
"""What of the default recipe belongs to its suite; the rest belongs to its model."""


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


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # a tag on a wrong value raises whatever its constructor does
        raise UserError(f"{where}: not valid YAML: {error}") from error


def builtin_recipes() -> dict[str, str]:
    """Return the recipes of the package, name to YAML text, in the names' order."""
    folder = importlib.resources.files("cl_mofo.runs")
    files = [f for f in folder.iterdir() if f.name.endswith(".yaml")]
    return {
        f.name.removesuffix(".yaml"): f.read_text("utf-8")
        for f in sorted(files, key=lambda f: f.name)
    }


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """Read a recipe by the name of a built-in one or by its path.

    Raises:
        UserError: there is no such recipe, or it is not a YAML mapping.
    """
    builtin = builtin_recipes()
    if name_or_path in builtin:
        return _mapping(builtin[name_or_path], f"recipe {name_or_path}")
    path = Path(name_or_path)
    try:
        text = path.read_text("utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: cannot be read: {error}") from error
    if text is None:
        raise UserError(
            f"recipe '{name_or_path}': neither a file nor a built-in recipe"
            f"{nearest(name_or_path, builtin)}; built in: {', '.join(builtin)}"
        )
    return _mapping(text, f"recipe {path}")


def _mapping(text: str, where: str) -> dict[str, Any]:
    value = _parsed(text, where)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: a mapping of keys was expected, not {brief(value)}")
    return value


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
        value = _parsed(text, f"--set {assignment}")
        *sections, last = (part.strip() for part in key.split("."))
        result = _assigned(result, sections, last, value, assignment)
    return result


def _assigned(
    node: Mapping[str, Any], sections: Sequence[str], last: str, value: Any, assignment: str
) -> dict[str, Any]:
    if not sections:
        return {**node, last: value}
    below = node.get(sections[0]) or {}
    if not isinstance(below, Mapping):
        raise UserError(
            f"--set {assignment}: '{sections[0]}' is the value {brief(below)}, not a section"
        )
    inner = _assigned(below, sections[1:], last, value, assignment)
    return {**node, sections[0]: inner}


def raw_recipe(
    recipe: str | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    strategy: str | None = None,
    assignments: Sequence[str] = (),
    imports: Sequence[Path] = (),
) -> dict[str, Any]:
    """Merge a recipe, the command line's options and its `--set`, the later winning.

    Without a recipe the base is the embedded suite's. Another suite then replaces what belongs to
    that suite by the tasks' own epochs and budgets, and another model what belongs to tiny by the
    defaults, however suite and model are named. What runs code (`imports`, remote code) must be
    asked for on the command line, not by a recipe file alone.

    Raises:
        UserError: the recipe, an assignment or an import is wrong.
    """
    asked: dict[str, Any] = {}
    if model is not None:
        asked["model"] = {"path": model}
    if data is not None:
        asked["data"] = {"path": data}
    if strategy is not None:
        asked["strategy"] = strategy
    asked = override(asked, assignments)
    base = read_recipe(recipe or DEFAULT_RECIPE)
    if recipe is None:
        source, used = _section(asked, "data"), _section(asked, "model").get("path", TINY)
        suite = source.get("suite") or ("trace" if source.get("path") else EMBEDDED)
        of_suite, of_model = suite == EMBEDDED, used == TINY
        base = {k: v for k, v in base.items() if (of_suite if k in SUITE_KEYS else of_model)}
        base["data"], base["model"] = {"suite": suite}, {"path": used}
    else:
        _refuse_code(base, asked, imports)
    merged = {**base, **asked}
    for key in base.keys() & asked.keys():
        if isinstance(base[key], Mapping) and isinstance(asked[key], Mapping):
            merged[key] = {**base[key], **asked[key]}
    listed = merged.get("imports")
    if imports and isinstance(listed, (list, type(None))):
        merged["imports"] = list(dict.fromkeys([*map(str, listed or ()), *map(str, imports)]))
    return merged


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = raw.get(name)
    return section if isinstance(section, Mapping) else {}


def _refuse_code(
    recipe: Mapping[str, Any], asked: Mapping[str, Any], imports: Sequence[Path]
) -> None:
    listed = recipe.get("imports") or []
    allowed = {Path(path).resolve() for path in imports}
    for path in listed if isinstance(listed, list) else [listed]:
        if Path(str(path)).resolve() not in allowed:
            raise UserError(
                f"the recipe asks to run {path}. That is code: read it, and allow it with "
                f"--import {path}"
            )
    asks, grants = (_section(r, "model").get("trust_remote_code") for r in (recipe, asked))
    if asks and not grants:
        raise UserError(
            "the recipe asks to run a model's own code. Read it, and allow it with "
            "--set model.trust_remote_code=true"
        )


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as the plain mapping that `resolve` gives the same recipe for."""
    core = recipe.model_dump(mode="json", exclude={"strategies"})
    settings = {name: dataclasses.asdict(config) for name, config in recipe.strategies.items()}
    return core | {name: values for name, values in settings.items() if values}
