"""Check a recipe whole and fill in every default; name every mistake in one go."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from reprlib import repr as brief
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cl_mofo.config import PROTOCOLS, SWEEP, Recipe, Section
from cl_mofo.discovery import Registry, registry
from cl_mofo.errors import UserError, closest, hint, nearest
from cl_mofo.expansion import at_work
from cl_mofo.recipes import Request, import_paths
from cl_mofo.strategy import Strategy, compose, parse_names
from cl_mofo.untrusted import shortened

RESERVED = {"strategies"}
SHOWN = 50
"""Problems of a recipe that are told in full, and names that a near one is looked for."""


def resolve(raw: Mapping[str, Any]) -> Recipe:
    """Check a raw recipe whole, whichever strategy it chooses, and fill in every default.

    Raises:
        UserError: naming every key that is unknown or has a wrong value, with the nearest right
            name; an unknown protocol, strategy or task.
    """
    if not isinstance(raw, Mapping):
        raise UserError(f"a recipe is a mapping of keys, not {brief(raw)}")
    if SWEEP in raw:
        raise UserError(
            f"the recipe is a list of runs (recipe key {SWEEP}): `cl-mofo run` runs them, and in "
            f"Python cl_mofo.sweep.run_sweep does"
        )
    imports = import_paths(raw.get("imports"))
    known = registry(imports)
    strategies = {k: v for k, v in raw.items() if isinstance(k, str) and k in known.strategies}
    core = {k: v for k, v in raw.items() if k not in strategies}
    problems = _unknown_keys(core, known)
    configs = _strategy_settings(strategies, known, problems)
    recipe = None
    try:
        recipe = Recipe.model_validate(
            {**_with_protocol(core), "strategies": configs, "imports": imports}
        )
    except ValidationError as error:
        problems += _told(error)
    except UserError as error:
        problems.append(str(error))
    problems += _check_names(core, known)
    if problems or recipe is None:
        told = list(dict.fromkeys(problems))
        more = ["and more like these"] if len(told) > SHOWN else []
        raise UserError("\n".join([*told[:SHOWN], *more]))
    strategies_of(recipe, known)
    return recipe


def resolve_request(request: Request) -> Recipe:
    """Check one recipe with what the command line lays over it.

    Raises:
        UserError: as `resolve` and `check_asked`.
    """
    recipe = resolve(request.complete())
    check_asked(request.asked, [recipe])
    return recipe


def check_asked(asked: Mapping[str, Any], recipes: Iterable[Recipe]) -> None:
    """Refuse settings of strategies that none of some runs has at work.

    A recipe may hold any strategy's settings; who sets one on the command line expects an effect.

    Args:
        asked: what the command line sets.
        recipes: the runs.

    Raises:
        UserError: naming the settings, and the strategies at work.
    """
    strategies = list(dict.fromkeys(recipe.strategy for recipe in recipes))
    for name, values in asked.items():
        used = name == SWEEP or any(at_work(name, strategy) for strategy in strategies)
        if values and not used:
            keys = ", ".join(f"{name}.{key}" for key in values)
            raise UserError(idle(f"--set {keys}", name, strategies))


def idle(told: str, name: str, strategies: Iterable[str]) -> str:
    """Say that what sets a strategy's settings has no effect, as no run has it at work."""
    return (
        f"{told}: has no effect, as no run has the strategy {name} at work; asked for: "
        f"{', '.join(strategies)}. Leave it away, or name {name} by --strategy"
    )


def strategies_of(recipe: Recipe, known: Registry) -> tuple[Strategy, ...]:
    """Make the recipe's strategies, with their settings, in their order of acting.

    Raises:
        UserError: a strategy is unknown, two cannot be combined, or one does not fit the recipe.
    """
    names = parse_names(recipe.strategy)
    strategies = compose(known.strategy(name)(recipe.strategies[name]) for name in names)
    for strategy in strategies:
        strategy.check_recipe(recipe)
    return strategies


def _with_protocol(core: Mapping[str, Any]) -> dict[str, Any]:
    protocol = PROTOCOLS.get(str(core.get("protocol", "default")), {})
    merged = dict(core)
    for section, values in protocol.items():
        given = core.get(section)
        if given is None or isinstance(given, Mapping):
            merged[section] = {**values, **(given or {})}
    return {k: ({} if v is None and _is_section(k) else v) for k, v in merged.items()}


def _is_section(key: str) -> bool:
    field = Recipe.model_fields.get(key)
    return field is not None and isinstance(field.default, Section)


def _strategy_settings(
    given: Mapping[str, Any], known: Registry, problems: list[str]
) -> dict[str, Any]:
    """Return every strategy's settings, and append what is wrong with the given ones."""
    configs: dict[str, Any] = {}
    for name, strategy in known.strategies.items():
        values = given.get(name)
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            problems.append(f"recipe key {name}: a mapping of settings was expected")
            continue
        fields = _dotted(name, (f.name for f in dataclasses.fields(strategy.Config)))
        unknown = [key for key in values if f"{name}.{key}" not in fields]
        problems += [
            f"unknown recipe key '{name}.{shortened(key)}'{_near_leaf(str(key), fields)}; "
            f"known: {', '.join(fields) or 'none'}"
            for key in unknown[: SHOWN + 1]
        ]
        kept = {key: value for key, value in values.items() if key not in unknown}
        defaults = strategy.Config()
        problems += [
            f"recipe key {name}.{key}: a number or text was expected, not {value}"
            for key, value in kept.items()
            if isinstance(value, bool) and not isinstance(getattr(defaults, key), bool)
        ]
        try:
            configs[name] = _adapter(strategy.Config).validate_python(kept)
        except ValidationError as error:
            problems += _told(error, name)
    return configs


@functools.lru_cache(maxsize=256)
def _adapter(config: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(config)


def _dotted(name: str, fields: Iterable[str]) -> list[str]:
    return [f"{name}.{field}" for field in fields]


def _unknown_keys(core: Mapping[str, Any], known: Registry) -> list[str]:
    """Name every key that no section has, with the key it may have meant."""
    keys: list[str] = []
    sections: dict[str, list[str]] = {}
    for name, field in Recipe.model_fields.items():
        if name in RESERVED:
            continue
        keys.append(name)
        if isinstance(field.default, Section):
            sections[name] = [f"{name}.{sub}" for sub in type(field.default).model_fields]
    keys += list(known.strategies)
    leaves = [leaf for leaves in sections.values() for leaf in leaves]
    problems: list[str] = []
    for key, value in core.items():
        if len(problems) > SHOWN:
            break
        if key not in keys:
            # A sweep is no key of one run, so it is hinted at, but not among the known ones.
            near = nearest(str(key), [*keys, SWEEP]) or _near_leaf(str(key), leaves)
            meant = _same_leaf(str(key), leaves) or near
            problems.append(
                f"unknown recipe key '{shortened(key)}'{meant}; known: {', '.join(keys)}"
            )
        elif key in sections and isinstance(value, Mapping):
            unknown = [sub for sub in value if f"{key}.{sub}" not in sections[key]]
            problems += [
                f"unknown recipe key '{key}.{shortened(sub)}'"
                f"{_same_leaf(str(sub), leaves) or _near_leaf(str(sub), sections[key])}; "
                f"known: {', '.join(sections[key])}"
                for sub in unknown[: SHOWN + 1]
            ]
    return problems


def _same_leaf(name: str, leaves: Iterable[str]) -> str:
    return hint(next((leaf for leaf in leaves if leaf.rpartition(".")[2] == name), None))


def _near_leaf(name: str, leaves: Iterable[str]) -> str:
    by_name = {leaf.rpartition(".")[2]: leaf for leaf in leaves}
    near = closest(name, by_name)
    return hint(near and by_name[near])


def _told(error: ValidationError, prefix: str = "") -> list[str]:
    problems = []
    for detail in error.errors():
        path = [str(part) for part in detail["loc"]]
        # A union's branches add their own names to the place; the key is what the user wrote.
        path = [part for part in path if not re.search(r"[\[\]()]", part) and part != "int"]
        if prefix:
            path = [prefix, *path]
        if detail["type"] == "extra_forbidden":
            continue
        given = "" if isinstance(detail["input"], Mapping) else f", not {brief(detail['input'])}"
        problems.append(f"recipe key {'.'.join(path)}: {_lower(detail['msg'])}{given}")
    return problems


def _lower(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _check_names(core: Mapping[str, Any], known: Registry) -> list[str]:
    """Name every strategy and task that the recipe names and nobody knows."""
    problems: list[str] = []
    tasks = core.get("tasks")
    named = [*tasks.values()] if isinstance(tasks, Mapping) else []
    lists = [n for value in named if isinstance(value, (Mapping, list, tuple)) for n in value]
    strategy = core.get("strategy", Recipe.model_fields["strategy"].default)
    try:
        strategies = parse_names(strategy) if isinstance(strategy, str) else ()
    except UserError as error:
        return [str(error)]
    tasks_named = [name for name in lists if isinstance(name, str)]
    for lookup, names in ((known.strategy, strategies), (known.task, tasks_named)):
        for name in names[: SHOWN + 1]:
            try:
                lookup(name)
            except UserError as error:
                problems.append(str(error))
    return problems
