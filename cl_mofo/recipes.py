"""Recipes as mappings: built in, from files, from options and `--set`; and back to a mapping."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from cl_mofo.config import EMBEDDED, SWEEP, TINY, Recipe
from cl_mofo.errors import UserError, nearest
from cl_mofo.mappings import merge, override, parsed, section
from cl_mofo.untrusted import MIB, read_bytes

DEFAULT_RECIPE = "trace-mini"
SUITE_KEYS = {"data", "tasks", "evaluation"}
"""What of the default recipe belongs to its suite; the rest belongs to its model."""


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
        text = read_bytes(path, MIB).decode("utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path}: cannot be read: {error}") from error
    if text is None:
        raise UserError(
            f"recipe '{name_or_path}': neither a file nor a built-in recipe"
            f"{nearest(name_or_path, builtin)}; built in: {', '.join(builtin)}"
        )
    return _mapping(text, f"recipe {path}")


def _mapping(text: str, where: str) -> dict[str, Any]:
    value = parsed(text, where)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: a mapping of keys was expected, not {brief(value)}")
    return value


@dataclass(frozen=True)
class Request:
    """A recipe, and what the command line lays over it.

    Args:
        given: the recipe.
        asked: the keys that options and `--set` set.
        imports: Python files the user allows to run.
        name: the recipe's name if it is built in or a file.
    """

    given: Mapping[str, Any]
    asked: Mapping[str, Any]
    imports: Sequence[Path] = ()
    name: str | None = None

    @property
    def several(self) -> bool:
        """Whether it asks for a list of runs."""
        return SWEEP in self.given or SWEEP in self.asked

    def complete(self) -> dict[str, Any]:
        """Return one recipe: the given one, and over it what was asked.

        What neither says is `config.py`'s to say; but what belongs to the embedded suite and to the
        embedded model is taken from the recipe that runs them. They are also what runs where no
        suite and no model is named, except that a recipe's file on another suite has the default
        model.

        Raises:
            UserError: `imports` names something else than files.
        """
        merged = merge(self.given, self.asked)
        source = section(merged, "data")
        suite = source.get("suite") or ("trace" if source.get("path") else EMBEDDED)
        default = Recipe().model.path if self.name is not None and suite != EMBEDDED else TINY
        path = section(merged, "model").get("path") or default
        of_suite, of_model = suite == EMBEDDED, path == TINY
        base = {
            key: value
            for key, value in read_recipe(DEFAULT_RECIPE).items()
            if (of_suite if key in SUITE_KEYS else of_model)
        }
        merged = merge(base | {"data": {"suite": suite}, "model": {"path": path}}, merged)
        if self.imports:
            listed = [*import_paths(merged.get("imports")), *import_paths(self.imports)]
            merged["imports"] = [str(path) for path in dict.fromkeys(listed)]
        return merged


def read_request(
    recipe: str | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    strategy: str | None = None,
    assignments: Sequence[str] = (),
    imports: Sequence[Path] = (),
) -> Request:
    """Read a recipe, the command line's options and its `--set`.

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
    if not isinstance(recipe, str):
        return Request(recipe or {}, asked, imports)
    given = read_recipe(recipe)
    _refuse_code(given, asked, imports)
    return Request(
        given, asked, imports, Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    )


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
    asks, grants = (section(r, "model").get("trust_remote_code") for r in (recipe, asked))
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
