"""Run the list of runs that one recipe describes, or tell which they are.

The recipe's key `sweep` says which runs (expansion.py); several.py runs them, each into a folder
named after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cl_mofo.config import SWEEP, Recipe
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.expansion import Point, Sweep, read_sweep, strategy_of
from cl_mofo.mappings import merge
from cl_mofo.observer import Observer
from cl_mofo.recipes import Request, read_request
from cl_mofo.resolve import check_asked, resolve
from cl_mofo.several import data_of, forget_data, run_all, which
from cl_mofo.strategy import parse_names


def run_sweep(
    recipe: Request | Mapping[str, Any] | str | Path,
    *,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> list[dict[str, Any]]:
    """Execute the runs of a recipe with the key `sweep`, each into its folder below `out`.

    Args:
        recipe: a mapping, the name or path of a recipe, or `read_request`'s recipe with options.
        out: the folder of the runs' folders, which may hold others; by default
            `outputs/<the recipe's name>`, or `outputs/sweep` for a mapping.
        observer: told what happens.

    Returns:
        what `cl_mofo.run` returns for each run, in their order; those that another process is
        running are left out.

    Raises:
        UserError: something has to be mended; if it is in the recipe, the data or the folders,
            then before the first run, for all runs at once.
        TrainingError: runs failed: they diverged, now or before, or ended in an error such as that
            memory ran out; all others are done. On several ranks an error other than that
            training diverged ends the sweep.
        LostRankError: another process of the sweep ended or does not answer.
    """
    request = as_request(recipe)
    runs = plan_sweep(request)
    root = Path("outputs", request.name or "sweep") if out is None else Path(out)
    heard = on_first_rank(observer)
    swept = run_all(runs, root, heard)
    heard.swept(root)
    if swept.failed:
        told = f"{len(swept.failed)} of {len(runs)} runs failed, which stopped no other:"
        again = f"One that diverged is not run again until its folder in {root} is deleted."
        why = (f"run {name}: {reason}" for name, reason in swept.failed.items())
        raise TrainingError("\n".join([told, *why, again]))
    return list(swept.results.values())


def as_request(recipe: Request | Mapping[str, Any] | str | Path) -> Request:
    """Return a recipe in any of the forms `run_sweep` takes as a recipe with options."""
    if isinstance(recipe, Request):
        return recipe
    return read_request(recipe if isinstance(recipe, Mapping) else str(recipe))


def on_first_rank(observer: Observer | None) -> Observer:
    """Return an observer on the first of a launcher's processes; the others tell nothing."""
    from cl_mofo.engine.ranks import launched

    return observer if observer is not None and launched().first else Observer()


def plan_sweep(request: Request) -> dict[str, Recipe]:
    """Return the runs that are asked for, each by its name, checked with all its data.

    What the command line sets holds for every run. A key that it sets varies no more, and a
    strategy that it names selects the runs of that strategy if the sweep says which there are.

    Raises:
        UserError: naming everything that is wrong, and in which runs.
    """
    described = describe(request)
    forget_data()
    recipes: dict[str, Recipe] = {}
    problems: dict[str, list[str]] = {}
    for name, run in ((point.name, point.recipe) for point in described.points):
        try:
            recipe = resolve(replace(request, given=run, asked=described.over).complete())
            data_of(recipe)
        except UserError as error:
            problems.setdefault(str(error), []).append(name)
            continue
        if twin := next((n for n, other in recipes.items() if other == recipe), None):
            problems.setdefault(f"the run is the same as {twin}", []).append(name)
        recipes[name] = recipe
    if problems:
        raise UserError(
            "\n".join(f"{which(n, len(described.points))}: {p}" for p, n in problems.items())
        )
    check_asked(request.asked, recipes.values())
    return recipes


@dataclass(frozen=True)
class Described:
    """The runs that a request asks for, not yet checked.

    Args:
        base: what all have in common.
        points: the runs.
        over: what the command line lays over each.
    """

    base: Mapping[str, Any]
    points: Sequence[Point]
    over: Mapping[str, Any]


def describe(request: Request) -> Described:
    """Tell which runs are asked for; a single run is a list of one.

    Raises:
        UserError: what is wrong with the key `sweep`, or no run has the strategy that is named.
    """
    whole = merge(request.given, request.asked)
    sweep = read_sweep(whole[SWEEP]) if SWEEP in whole else Sweep([{}], {})
    given, asked = (
        {key: value for key, value in keys.items() if key != SWEEP}
        for keys in (request.given, request.asked)
    )
    wanted = asked.pop("strategy", None)
    if wanted is not None and not sweep.names_strategies:
        given["strategy"], wanted = wanted, None
    vary = {key: _asked_value(asked, key, values) for key, values in sweep.vary.items()}
    points = Sweep(sweep.rows, vary).over(given)
    if wanted is not None:
        points = _selected(points, str(wanted))
    return Described(given, points, asked)


def _asked_value(asked: Mapping[str, Any], key: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a varied key, or the one that the command line sets."""
    node: Any = asked
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return values
        node = node[part]
    return [node]


def _selected(points: Sequence[Point], wanted: str) -> list[Point]:
    names = {*parse_names(wanted)}
    found = [p for p in points if {*parse_names(strategy_of(p.recipe))} == names]
    if not found:
        there = dict.fromkeys(strategy_of(point.recipe) for point in points)
        raise UserError(f"--strategy {wanted}: no run of the sweep; there are: {', '.join(there)}")
    return found
