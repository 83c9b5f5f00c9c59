"""What a tuning tries: a grid of values for each strategy of a recipe, as a recipe of several runs.

Rows of the recipe that differ only in the grid's keys or in the seed are one contestant. Every
contestant goes through the same grid, but for settings of strategies that it does not have at work.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cl_mofo.config import SWEEP, Recipe
from cl_mofo.discovery import registry
from cl_mofo.errors import UserError
from cl_mofo.expansion import Point, at_work, strategy_of
from cl_mofo.mappings import merge, nested, parsed, section
from cl_mofo.recipes import Request, import_paths
from cl_mofo.resolve import idle
from cl_mofo.sweep import Described, describe
from cl_mofo.untrusted import shortened

Grid = Mapping[str, Sequence[Any]]
"""Dotted recipe keys with the values to try."""
TRIED = ("optimizer", "training", "tasks")
"""The sections of a recipe, beside strategies' settings, that say what is learned and how."""
LASTING = {"model", "optimizer", "training", "protocol", "deterministic", "data.path", "data.suite"}
"""What the command line sets for the chosen recipe too, beside strategies' settings; the rest says
how much is learned and scored while choosing."""


@dataclass(frozen=True)
class Contestant:
    """A strategy as a recipe has it, whose settings are to be chosen.

    Args:
        part: what its row lays over the recipe, without the grid's keys and the seed.
        strategy: its strategy.
        seeds: those that its rows set; None for a row that sets none.
    """

    part: Mapping[str, Any]
    strategy: str
    seeds: tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """A tuning.

    Args:
        request: its runs, as a recipe of several.
        points: the same, one by one; `row` numbers the contestants.
        contestants: what is tuned.
        grid: what is tried.
        given: the runs of the recipe that is tuned.
        seeds: the runs of each point of the grid.
        vary: the seeds that the recipe runs each row with, if it says so.
    """

    request: Request
    points: Sequence[Point]
    contestants: Sequence[Contestant]
    grid: Grid
    given: Described
    seeds: Sequence[Any]
    vary: Sequence[Any]


def read_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read `key=value,value` texts, whose values are YAML, or one YAML list of them.

    Raises:
        UserError: a text is no such, or two are of one key.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        told = f"--grid {shortened(text)}"
        if not equals:
            raise UserError(f"{told}: write key=values, as in --grid optimizer.lr=5e-5,2e-4")
        if key in grid:
            raise UserError(f"{told}: the key is given twice; write all its values in one list")
        found = parsed(f"[{values}]", told)
        grid[key] = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    return grid


def plan_tuning(request: Request, grid: Grid, share: float | None = None) -> Plan:
    """Return what a tuning of a recipe runs, its recipes not yet checked.

    Args:
        request: the recipe, with what the command line lays over it.
        grid: what is tried.
        share: goes to `data.train_share`.

    Raises:
        UserError: naming everything that is wrong with the grid; the test split is asked for.
    """
    given = describe(request)
    if section(given.over, "evaluation").get("split", "eval") != "eval":
        raise UserError("--set evaluation.split: hyperparameters are chosen on eval, never on test")
    if problems := list(_mistakes(grid, given, request)):
        raise UserError("\n".join(problems))
    over = {key: value for key, value in given.over.items() if key != "seed"}
    contestants = _contestants(given, grid)
    asked = section(section(request.asked, SWEEP), "vary").get("seed")
    first = given.points[0].recipe.get("seed", Recipe.model_fields["seed"].default)
    seeds = asked or [given.over.get("seed", first)]
    trial = {"evaluation": {"initial": False}, "save_model": False}
    proxy = {} if share is None else {"data": {"train_share": share}}
    validation = {"evaluation": {"split": "eval"}}
    tried = replace(
        request,
        given={
            **given.base,
            SWEEP: {"rows": [c.part for c in contestants], "vary": {**grid, "seed": seeds}},
        },
        asked=merge(merge(merge(trial, over), proxy), validation),
    )
    vary = section(section(request.given, SWEEP), "vary").get("seed") or ()
    return Plan(tried, describe(tried).points, contestants, grid, given, seeds, vary)


def chosen_recipe(plan: Plan, chosen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the recipe that was given, with the values chosen for each contestant in its rows.

    It scores the test split. Of what the command line set, it has what `LASTING` says.

    Args:
        plan: the tuning.
        chosen: for each contestant, dotted keys with their values.
    """
    kept = _lasting(plan.given.over)
    base = _without(merge(plan.given.base, kept), "evaluation.split")
    rows: list[dict[str, Any]] = []
    for contestant, values in zip(plan.contestants, chosen, strict=True):
        part = {"strategy": contestant.strategy, **contestant.part}
        for key in leaves(kept):
            part = _without(part, key)
        for key, value in values.items():
            part = merge(part, nested(key, value))
        for seed in [None] if plan.vary else contestant.seeds:
            rows.append(part if seed is None else {**part, "seed": seed})
    complete = replace(plan.request, given=base, asked={}).complete()
    base = merge({"model": {"path": complete["model"]["path"]}}, base)
    if plan.request.imports:
        base["imports"] = [str(path) for path in import_paths(complete["imports"])]
    if len(rows) == 1 and not plan.vary:
        return merge(base, rows[0])
    return {**base, SWEEP: {"rows": rows} | ({"vary": {"seed": [*plan.vary]}} if plan.vary else {})}


def trial_only(plan: Plan) -> dict[str, Any]:
    """Return what was set for the tuning alone, and is not in `chosen_recipe`: dotted keys."""
    said = {**leaves(plan.given.over), **leaves(section(plan.request.asked, "data"), "data.")}
    return {key: value for key, value in said.items() if not _lasts(key)}


def _mistakes(grid: Grid, given: Described, request: Request) -> Iterator[str]:
    if not grid:
        yield "give --grid: a key with the values to try, as in --grid optimizer.lr=5e-5,2e-4"
    known = registry(import_paths(given.base.get("imports")) + import_paths(request.imports))
    strategies = list(dict.fromkeys(strategy_of(point.recipe) for point in given.points))
    for key, values in grid.items():
        told = f"--grid {shortened(key)}"
        parts = key.split(".")
        if len(parts) < 2 or not all(parts):
            yield f"{told}: write a key of a section, as in optimizer.lr or mofo.update_fraction"
        elif key == "tasks.only" or (parts[0] in Recipe.model_fields and parts[0] not in TRIED):
            yield (
                f"{told}: cannot be chosen by its scores; a grid has keys of "
                f"{', '.join(TRIED)} and of strategies"
            )
        elif parts[0] in known.strategies and not any(at_work(key, s) for s in strategies):
            yield idle(told, parts[0], strategies)
        if key in leaves(given.over):
            yield f"{told}: --set sets it too. Leave one of them away"
        if other := next((k for k in grid if k.startswith(f"{key}.")), None):
            yield f"{told}: holds {other}, which is in the grid too"
        yield from _in_values(values, told)


def _in_values(values: Any, told: str) -> Iterator[str]:
    if not isinstance(values, (list, tuple)) or not values:
        yield f"{told}: at least one value was expected"
        return
    for one, other in itertools.combinations(values, 2):
        if one == other and isinstance(one, bool) == isinstance(other, bool):
            yield f"{told}: the value {shortened(one)} is given twice"


def _contestants(given: Described, grid: Grid) -> list[Contestant]:
    found: dict[str, Contestant] = {}
    for point in given.points:
        strategy = strategy_of(point.recipe)
        moot = ["seed", "evaluation.split", *(key for key in grid if at_work(key, strategy))]
        whole, part = merge(point.recipe, given.over), point.part
        for key in moot:
            whole, part = _without(whole, key), _without(part, key)
        own = None if "seed" in point.varied else point.part.get("seed")
        known = found.setdefault(_text(whole), Contestant(part, strategy, ()))
        seeds = tuple(dict.fromkeys((*known.seeds, own)))
        found[_text(whole)] = replace(known, seeds=seeds)
    return list(found.values())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _lasting(over: Mapping[str, Any]) -> dict[str, Any]:
    lasting: dict[str, Any] = {}
    for key, value in leaves(over).items():
        if _lasts(key):
            lasting = merge(lasting, nested(key, value))
    return lasting


def _lasts(key: str) -> bool:
    root = key.partition(".")[0]
    return root not in Recipe.model_fields or root in LASTING or key in LASTING


def leaves(keys: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the keys of a recipe's sections, dotted, with their values."""
    found: dict[str, Any] = {}
    for key, value in keys.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _without(keys: Mapping[str, Any], dotted: str) -> dict[str, Any]:
    """Return a recipe without a dotted key, and without a section that is then empty."""
    key, _, rest = dotted.partition(".")
    kept = dict(keys)
    if not rest:
        kept.pop(key, None)
    elif isinstance(below := kept.pop(key, None), Mapping):
        if left := _without(below, rest):
            kept[key] = left
    elif key in keys:
        kept[key] = below
    return kept
