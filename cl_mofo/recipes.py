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
    recipe: str | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    strategy: str | None = None,
    assignments: Sequence[str] = (),
    imports: Sequence[Path] = (),
) -> dict[str, Any]:
    """Merge a recipe, the command line's options and its `--set`, the later winning.

    What none of them says is `config.py`'s to say; but what belongs to the embedded suite and to
    the embedded model is taken from the recipe that runs them. They are also what runs where no
    suite and no model is named, except that a recipe's file on another suite has the default model.
    What runs code (`imports`, remote code) must be asked for on the command line, not by a file.

    Args:
        recipe: the name of a built-in recipe, a file, or a mapping.
        model: goes to `model.path`.
        data: goes to `data.path`.
        strategy: goes to `strategy`.
        assignments: `key=value` texts.
        imports: Python files the user allows to run.

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
    given: Mapping[str, Any] = recipe if isinstance(recipe, Mapping) else {}
    if isinstance(recipe, str):
        given = read_recipe(recipe)
        _refuse_code(given, asked, imports)
    merged = _merge(given, asked)
    source = _section(merged, "data")
    suite = source.get("suite") or ("trace" if source.get("path") else EMBEDDED)
    default = Recipe().model.path if isinstance(recipe, str) and suite != EMBEDDED else TINY
    path = _section(merged, "model").get("path") or default
    of_suite, of_model = suite == EMBEDDED, path == TINY
    base = {
        key: value
        for key, value in read_recipe(DEFAULT_RECIPE).items()
        if (of_suite if key in SUITE_KEYS else of_model)
    }
    merged = _merge(base | {"data": {"suite": suite}, "model": {"path": path}}, merged)
    if imports:
        listed = [*import_paths(merged.get("imports")), *import_paths(imports)]
        merged["imports"] = [str(path) for path in dict.fromkeys(listed)]
    return merged


def import_paths(value: Any) -> tuple[Path, ...]:
    """Return the files that `imports` names, one or several, as absolute paths.

    Raises:
        UserError: it names something else.
    """
    if value is None:
        return ()
    listed = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(item, (str, Path)) for item in listed):
        raise UserError(f"recipe key imports: Python files were expected, not {brief(value)}")
    return tuple(Path(item).resolve() for item in listed)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another, section by section; an empty section changes nothing."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], (Mapping, type(None))):
            merged[key] = {**below[key], **(above[key] or {})}
    return merged


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = raw.get(name)
    return section if isinstance(section, Mapping) else {}


def _refuse_code(
    recipe: Mapping[str, Any], asked: Mapping[str, Any], imports: Sequence[Path]
) -> None:
    allowed = import_paths(imports)
    listed = recipe.get("imports")
    written = listed if isinstance(listed, list) else [listed]
    for path, found in zip(written, import_paths(listed), strict=False):
        if found not in allowed:
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
