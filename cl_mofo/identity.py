"""What a run is made of, so that it goes on as the same run or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from reprlib import repr as brief
from typing import Any

from cl_mofo.config import Recipe
from cl_mofo.errors import UserError
from cl_mofo.manifest import versions
from cl_mofo.recipes import to_mapping
from cl_mofo.strategy import parse_names

KEPT = ("checkpoint.", "save_model", "training.max_skipped_steps", "evaluation.cache")
"""Keys that say what is kept of a run, or taken from what was, and when it gives up."""
FREE = ("engine.", "model.device", "model.gradient_checkpointing", "training.packing")
"""Keys that say how a run is computed, not what."""
DATA = ("data.path", "data.prose")
"""Keys that say where data lie, which are compared by their content."""
FREE_BY_CONTENT = (
    *DATA,
    "model.path",
    "model.revision",
    "model.trust_remote_code",
    "imports",
)
"""Keys that say where to find what is compared by its content."""
FREE_IF = {
    "training.micro_batch_size": ("training.loss", "tokens"),
    "evaluation.batch_size": ("evaluation.decoding", "greedy"),
    "data.prose_tokens": ("data.prose", None),
}
"""Keys that are a matter of speed and memory, or of none, if another key has this value: where a
mean is over micro-batches, or each batch has draws of its own, they say what is computed."""


def identity(recipe: Recipe, data: Mapping[str, str], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is made of, as JSON can hold it.

    Args:
        recipe: the whole recipe.
        data: SHA-256 of each data file.
        model: what identifies the model; its "sha256" counts.
    """
    return {
        "recipe": dict(flat(recipe)),
        "data": dict(data),
        "model": model["sha256"],
        "code": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in recipe.imports
        },
        "versions": versions(),
    }


def flat(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Yield a recipe's keys, dotted, with their values, but not those of strategies not at work."""
    names = {*Recipe.model_fields, *parse_names(recipe.strategy)}
    whole = json.loads(json.dumps(to_mapping(recipe)))
    return dotted({key: value for key, value in whole.items() if key in names})


def dotted(keys: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a recipe as it is written, dotted, with their values."""
    for key, value in keys.items() if isinstance(keys, dict) else ():
        if isinstance(value, dict):
            yield from ((f"{key}.{sub}", below) for sub, below in value.items())
        else:
            yield key, value


def others(kept: Any, recipe: Recipe) -> list[str]:
    """Return what makes a run of a kept recipe.yaml another one than a recipe's, a line each."""
    theirs, ours = dict(dotted(kept)), dict(flat(recipe))
    return [
        _told(key, before, here)
        for key, (before, here) in differences(theirs, ours).items()
        if key in theirs and key in ours and not is_free(key, ours)
    ]


def compare(then: Any, now: Mapping[str, Any]) -> list[str]:
    """Compare what a run was made of with what it would go on with.

    Args:
        then: what `identity` returned at the time.
        now: what it returns now.

    Returns:
        what differs without making it another run, a line each.

    Raises:
        UserError: it would be another run; names everything that differs.
    """
    theirs = {part: then.get(part) if isinstance(then, Mapping) else None for part in now}
    if isinstance(theirs["recipe"], Mapping):  # keys that came later had no effect before
        defaults = dict(dotted(Recipe().model_dump(mode="json", exclude={"strategies"})))
        later = {key: defaults[key] for key in now["recipe"] if key in defaults}
        theirs["recipe"] = {**later, **theirs["recipe"]}
    problems, remarks = [], []
    for part, what in (("data", "data file"), ("code", "imported file")):
        problems += [f"the {what} {name} {how}" for name, how in _changes(theirs[part], now[part])]
    if theirs["model"] != now["model"]:
        problems.append("the model's weights are others")
    for key, (before, here) in differences(theirs["recipe"], now["recipe"]).items():
        if not is_free(key, now["recipe"]):
            problems.append(f"recipe key {_told(key, before, here)}")
        elif key not in FREE_BY_CONTENT and not key.startswith(KEPT):
            remarks.append(f"{_told(key, before, here)}: figures may differ in their last digits")
    if problems:
        raise UserError(
            "this would not be the run that was begun:\n"
            + "\n".join(f"- {problem}" for problem in problems)
            + "\nPut back what has changed, or begin a new run"
        )
    remarks += [
        f"{name} {how}: figures may differ in their last digits"
        for name, how in _changes(theirs["versions"], now["versions"], shown=True)
    ]
    return remarks


def differences(then: Any, now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with both."""
    theirs = then if isinstance(then, Mapping) else {}
    keys = dict.fromkeys([*now, *theirs])
    return {k: (theirs.get(k), now.get(k)) for k in keys if theirs.get(k) != now.get(k)}


def _changes(
    then: Any, now: Mapping[str, Any], *, shown: bool = False
) -> Iterator[tuple[str, str]]:
    for name, (before, here) in differences(then, now).items():
        if before is None or here is None:
            yield name, "is new" if before is None else "is gone"
        else:
            yield name, f"was {brief(before)} and is {brief(here)}" if shown else "has changed"


def _told(key: str, before: Any, here: Any) -> str:
    return f"{key} was {brief(before)} and is {brief(here)}"


def is_free(key: str, recipe: Mapping[str, Any]) -> bool:
    """Tell whether a recipe's key may have another value without making it another run."""
    if key in FREE_IF:
        other, value = FREE_IF[key]
        return bool(recipe.get(other) == value)
    return key.startswith((*FREE, *KEPT)) or key in FREE_BY_CONTENT
