"""What runs a recipe describes with its key `sweep`.

    strategy: mofo
    sweep:
      rows: [{optimizer: {lr: 1.0e-3}}, {strategy: sequential}]
      vary: {seed: [1, 2], tasks.epochs: [1, 3]}

Each row is laid over the recipe section by section, and each combination of the varied values over
that. Here: mofo-seed1-tasks.epochs=1, mofo-seed1-tasks.epochs=3, mofo-seed2-tasks.epochs=1, ... and
the same of `sequential`, eight runs. Without rows there is one, the recipe itself.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Any

from cl_mofo.config import SWEEP, Recipe
from cl_mofo.errors import UserError, nearest
from cl_mofo.mappings import assign, merge, section

KEYS = ("rows", "vary")
DEEPEST = 3
"""Sections a varied key may lead through: `tasks.epochs.FOMC`."""
MOST_RUNS = 1000
LONGEST_NAME = 120


@dataclass(frozen=True)
class Sweep:
    """Partial recipes, and varied keys with their values.

    Args:
        rows: partial recipes.
        vary: dotted recipe keys, each with at least one value.
    """

    rows: Sequence[Mapping[str, Any]] = ({},)
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def names_strategies(self) -> bool:
        """Whether rows or varied values say which strategy runs."""
        return "strategy" in self.vary or any("strategy" in row for row in self.rows)

    def over(self, base: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Return the runs over a recipe: each one's name, and its recipe.

        A name is the strategy and the varied values; of runs that would share one, the second ends
        in -2, and so on. It is a folder's name, safe on every system.
        """
        runs: list[tuple[str, dict[str, Any]]] = []
        taken: set[str] = set()
        for row in self.rows:
            for values in itertools.product(*self.vary.values()):
                varied: dict[str, Any] = {}
                for key, value in zip(self.vary, values, strict=True):
                    *sections, last = key.split(".")
                    varied = assign(varied, sections, last, value, f"{SWEEP}.vary.{key}")
                recipe = merge(merge(base, row), varied)
                name = _name(strategy_of(recipe), dict(zip(self.vary, values, strict=True)))
                endings = itertools.chain([""], (f"-{i}" for i in itertools.count(2)))
                name += next(e for e in endings if (name + e).lower() not in taken)
                taken.add(name.lower())
                runs.append((name, recipe))
        return runs


def expand(raw: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the runs of a recipe with the key `sweep`, in order: (name, recipe without the key).

    Raises:
        UserError: naming everything that is wrong with the key.
    """
    return read_sweep(raw.get(SWEEP)).over({k: v for k, v in raw.items() if k != SWEEP})


def read_sweep(value: Any) -> Sweep:
    """Check what the key `sweep` holds.

    Raises:
        UserError: naming everything that is wrong with it.
    """
    if not isinstance(value, Mapping):
        raise UserError(
            f"recipe key {SWEEP}: a mapping with rows, vary or both was expected, not "
            f"{brief(value)}"
        )
    problems = [
        f"unknown recipe key '{SWEEP}.{key}'{nearest(str(key), KEYS)}; known: {', '.join(KEYS)}"
        for key in value
        if key not in KEYS
    ]
    rows, vary = value.get("rows"), value.get("vary")
    if rows is None and vary is None:
        problems.append(f"recipe key {SWEEP}: give rows, vary or both")
    checked = Sweep(_rows(rows, problems), _vary(vary, problems))
    if (count := _size(checked)) > MOST_RUNS:
        problems.append(f"recipe key {SWEEP}: describes {count} runs; {MOST_RUNS} at most")
    if problems:
        raise UserError("\n".join(problems))
    keys = list(checked.vary)
    firsts = [recipe for _, recipe in Sweep(checked.rows, _first(checked)).over({})]
    for j, recipe in enumerate(firsts):
        if recipe in firsts[:j]:
            beside = f", but for {', '.join(keys)}, which vary" if keys else ""
            raise UserError(
                f"recipe key {SWEEP}.rows: rows {firsts.index(recipe) + 1} and {j + 1} are the same"
                f"{beside}"
            )
    return checked


def laid_over(below: Any, above: Any) -> Any:
    """Lay what the command line sets under the key `sweep` over what a recipe has there."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return below if above is None else above
    merged = {**below, **above}
    if all(isinstance(sweep.get("vary"), Mapping) for sweep in (below, above)):
        merged["vary"] = dict(_leaves(below["vary"])) | dict(_leaves(above["vary"]))
    return merged


def strategy_of(recipe: Mapping[str, Any]) -> str:
    """Return the strategy that a raw recipe names, or the one it has by default."""
    return str(recipe.get("strategy", Recipe.model_fields["strategy"].default))


def _size(sweep: Sweep) -> int:
    return len(sweep.rows) * math.prod(map(len, sweep.vary.values()))


def _first(sweep: Sweep) -> dict[str, Sequence[Any]]:
    return {key: values[:1] for key, values in sweep.vary.items()}


def _rows(given: Any, problems: list[str]) -> Sequence[Mapping[str, Any]]:
    if given is None:
        return ({},)
    where = f"recipe key {SWEEP}.rows"
    if not isinstance(given, (list, tuple)) or not given:
        problems.append(f"{where}: a list of at least one row was expected, not {brief(given)}")
        return ({},)
    for i, row in enumerate(given, 1):
        if isinstance(row, Mapping):
            problems += _refused(row, f"{where}: row {i}")
        else:
            problems.append(f"{where}: row {i}: a mapping of keys was expected, not {brief(row)}")
    return [row for row in given if isinstance(row, Mapping)]


def _vary(given: Any, problems: list[str]) -> Mapping[str, Sequence[Any]]:
    if given is None:
        return {}
    where = f"recipe key {SWEEP}.vary"
    if not isinstance(given, Mapping) or not given:
        problems.append(
            f"{where}: recipe keys with lists of values were expected, not {brief(given)}"
        )
        return {}
    found: dict[str, Sequence[Any]] = {}
    for key, values in _leaves(given):
        if not all(part.strip() for part in key.split(".")):
            problems.append(f"{where}: '{key}' is no recipe key")
        elif not isinstance(values, (list, tuple)) or not values:
            instead = "a mapping" if isinstance(values, Mapping) else brief(values)
            problems.append(
                f"{where}.{key}: a list of at least one value was expected, not {instead}"
            )
        elif any(value in values[:i] for i, value in enumerate(values)):
            problems.append(f"{where}.{key}: a value is given twice in {brief(values)}")
        elif rival := next(
            (k for k in found if f"{key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{key}.")),
            None,
        ):
            problems.append(f"{where}: '{rival}' and '{key}' set the same key")
        else:
            found[key] = values
            for value in values:
                *sections, last = key.split(".")
                problems += _refused(assign({}, sections, last, value, where), f"{where}.{key}")
    return found


def _refused(part: Mapping[str, Any], where: str) -> list[str]:
    """Name the keys that no single run may set: what runs code, and a sweep of its own."""
    found = [key for key in ("imports", SWEEP) if key in part]
    found += ["model.trust_remote_code"] * ("trust_remote_code" in section(part, "model"))
    return [f"{where}: '{key}' cannot be set here, only for the whole recipe" for key in found]


def _leaves(node: Mapping[Any, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and value and len(path) < DEEPEST:
            yield from _leaves(value, path)
        else:
            yield ".".join(path), value


def _name(strategy: str, varied: Mapping[str, Any]) -> str:
    parts = [strategy]
    for key, value in varied.items():
        if key != "strategy":
            parts.append(f"{key}{_text(value)}" if key == "seed" else f"{key}={_text(value)}")
    name = re.sub(r"[^A-Za-z0-9._+=-]+", "_", "-".join(parts))[:LONGEST_NAME].strip(".-_")
    return name or "run"


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, (int, float, str)) else brief(value).strip("[]")
