"""What a run was asked to do, read from the `recipe.yaml` beside its results.

Runs of one strategy whose recipes differ in more than the seed must not be averaged, and a reader
wants to see in what they differ: `mofo (mofo.update_fraction=0.1)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_mofo.errors import UserError
from cl_mofo.untrusted import MIB, read_bytes, shortened

FILE_NAME = "recipe.yaml"
MANIFEST = "manifest.json"
SHOWN = 20
"""Keys in which recipes differ that a label names."""
PROSE = "prose"
"""What a manifest calls the text of `data.prose`."""
_NO_MATTER = frozenset({"seed", "strategy", "save_model", "evaluation.cache"})

Settings = Mapping[str, str]
"""Dotted recipe key -> value as JSON; empty where a run has no recipe. `data.path` and `data.prose`
are what the data were, as far as a manifest says so: they may have moved, or changed in place."""


def read_settings(folder: Path, strategy: str) -> Settings:
    """Read the recipe of a run, without its seed and the settings of strategies it does not use.

    Args:
        folder: the run folder.
        strategy: the run's strategy, such as "ewc+mofo".

    Raises:
        UserError: there is a recipe, and it cannot be read or is not a YAML mapping.
    """
    from cl_mofo.config import Recipe
    from cl_mofo.mappings import parsed

    file = folder / FILE_NAME
    try:
        recipe = parsed(read_bytes(file, MIB).decode("utf-8"), str(file))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text (byte {error.start})") from None
    if not isinstance(recipe, dict):
        raise UserError(f"{file}: is not a recipe: a mapping is expected")
    used = Recipe.model_fields.keys() | {name.strip() for name in strategy.split("+")}
    kept = {key: value for key, value in recipe.items() if key in used - _NO_MATTER}
    told = {key: value for key, value in _leaves(kept, "") if key not in _NO_MATTER}
    return told | (_content(data_files(folder)) if told else {})


def data_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each data file of a run; nothing where no manifest says so."""
    try:
        told = json.loads(read_bytes(folder / MANIFEST, 16 * MIB))["data"]
        return {str(name): str(digest) for name, digest in told.items()}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}


def _content(files: Mapping[str, str]) -> dict[str, str]:
    suite = json.dumps(sorted((name, told) for name, told in files.items() if name != PROSE))
    found = {"data.path": hashlib.sha256(suite.encode()).hexdigest()} if files else {}
    found |= {"data.prose": files[PROSE]} if PROSE in files else {}
    return {key: json.dumps(f"SHA-256 {digest[:12]}") for key, digest in found.items()}


def differences(recipes: Sequence[Settings]) -> list[str]:
    """Say of each recipe what sets it apart from the others; nothing if it is the only one."""
    known = [recipe for recipe in recipes if recipe]
    keys = dict.fromkeys(key for recipe in known for key in recipe)
    apart = [key for key in keys if len({recipe.get(key) for recipe in known}) > 1]
    return [
        ", ".join(
            f"{shortened(key)}={shortened(recipe[key])}" for key in apart[:SHOWN] if key in recipe
        )
        if recipe or len(recipes) == 1
        else f"no {FILE_NAME}"
        for recipe in recipes
    ]


def _leaves(value: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, child in value.items():
        name = prefix + json.dumps(str(key))[1:-1]
        if isinstance(child, dict) and child:
            yield from _leaves(child, f"{name}.")
        else:
            yield name, json.dumps(child, default=str, sort_keys=True)
