"""What runs a recipe describes with its key `sweep`.

    strategy: mofo
    sweep:
      rows: [{optimizer: {lr: 1.0e-3}}, {strategy: sequential}]
      vary: {seed: [1, 2], tasks.epochs: [1, 3]}

Each row is laid over the recipe, and each combination of the varied values over that. Here:
mofo-seed1-tasks.epochs=1, mofo-seed1-tasks.epochs=3, mofo-seed2-tasks.epochs=1, ... and the same of
`sequential`, eight runs. Without rows there is one, the recipe itself. A varied setting of a
strategy makes no more runs of a row that does not have it at work.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from cl_mofo.config import SWEEP, Recipe
from cl_mofo.errors import UserError, nearest
from cl_mofo.mappings import merge, nested, section

KEYS = ("rows", "vary")
MOST_RUNS = 1000
LONGEST_NAME = 120


@dataclass(frozen=True)
class Point:
    """One run that a sweep describes.

    Args:
        name: the run's.
        row: the number of its row, from 0.
        part: its row, and over it its varied values.
        varied: the values it has of the varied keys, without those that play no part in it.
        recipe: the whole recipe.
    """

    name: str
    row: int
    part: Mapping[str, Any]
    varied: Mapping[str, Any]
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Partial recipes, and dotted recipe keys with their values."""

    rows: Sequence[Mapping[str, Any]]
    vary: Mapping[str, Sequence[Any]]

    @property
    def names_strategies(self) -> bool:
        """Whether rows or varied values say which strategy runs."""
        return "strategy" in self.vary or any("strategy" in row for row in self.rows)

    def over(self, base: Mapping[str, Any]) -> list[Point]:
        """Return the runs over a recipe, in order.

        A name is the strategy and the varied values; of runs that would share one, the second ends
        in -2, and so on. It is a folder's name, safe on every POSIX system.
        """
        found: list[Point] = []
        taken: set[str] = set()
        for row, varied in self._combinations(base):
            part, recipe = self.rows[row], merge(base, self.rows[row])
            for key, value in varied.items():
                part, recipe = merge(part, nested(key, value)), merge(recipe, nested(key, value))
            name = _name(strategy_of(recipe), varied)
            endings = itertools.chain([""], (f"-{i}" for i in itertools.count(2)))
            name += next(e for e in endings if (name + e).lower() not in taken)
            taken.add(name.lower())
            found.append(Point(name, row, part, varied, recipe))
        return found

    def _combinations(self, base: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """Return the rows' numbers with varied values, each once."""
        strategies = [strategy_of(merge(base, row)) for row in self.rows]
        indices = [[(key, i) for i in range(len(self.vary[key]))] for key in self.vary]
        combined: list[tuple[int, str, tuple[tuple[str, int], ...]]] = []
        for row, chosen in itertools.product(range(len(self.rows)), itertools.product(*indices)):
            named = [self.vary[key][i] for key, i in chosen if key == "strategy"]
            combined.append((row, str(named[0]) if named else strategies[row], chosen))
        # A key that no run has at work stays, so that it is told what is wrong with it.
        used = {key for key in self.vary if any(at_work(key, names) for _, names, _ in combined)}
        once = dict.fromkeys(
            (row, tuple((k, i) for k, i in chosen if k not in used or at_work(k, names)))
            for row, names, chosen in combined
        )
        return [(row, {key: self.vary[key][i] for key, i in chosen}) for row, chosen in once]


def expand(raw: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the runs of a recipe with the key `sweep`, in order: recipe without the key by name.

    Raises:
        UserError: naming everything that is wrong with the key.
    """
    points = read_sweep(raw.get(SWEEP)).over({k: v for k, v in raw.items() if k != SWEEP})
    return {point.name: point.recipe for point in points}


def read_sweep(value: Any) -> Sweep:
    """Check what the key `sweep` holds.

    Raises:
        UserError: naming everything that is wrong with it.
    """
    if problems := list(_mistakes(value)):
        raise UserError("\n".join(f"recipe key {SWEEP}{problem}" for problem in problems))
    vary = {str(key): values for key, values in (value.get("vary") or {}).items()}
    sweep = Sweep(value.get("rows") or [{}], vary)
    if (count := len(sweep.rows) * math.prod(map(len, vary.values()))) > MOST_RUNS:
        raise UserError(f"recipe key {SWEEP}: describes {count} runs; {MOST_RUNS} at most")
    return sweep


def strategy_of(recipe: Mapping[str, Any]) -> str:
    """Return the strategy that a raw recipe names, or the one it has by default."""
    return str(recipe.get("strategy", Recipe.model_fields["strategy"].default))


def at_work(key: str, strategy: str) -> bool:
    """Tell whether a dotted recipe key plays a part in a run of a strategy, such as "ewc+mofo"."""
    root = key.partition(".")[0].strip()
    return root in Recipe.model_fields or root in (name.strip() for name in strategy.split("+"))


def _mistakes(value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f": a mapping with rows, vary or both was expected, not {brief(value)}"
        return
    for key in value:
        if key not in KEYS:
            yield f".{key}: no such key{nearest(str(key), KEYS)}; known: {', '.join(KEYS)}"
    rows, vary = value.get("rows"), value.get("vary")
    if rows is None and vary is None:
        yield ": give rows, vary or both"
    if rows is not None:
        yield from _in_rows(rows)
    if vary is not None:
        yield from _in_vary(vary)


def _in_rows(rows: Any) -> Iterator[str]:
    if not isinstance(rows, (list, tuple)) or not rows:
        yield f".rows: a list of at least one row was expected, not {brief(rows)}"
        return
    for i, row in enumerate(rows, 1):
        if isinstance(row, Mapping):
            yield from _refused(row, f".rows: row {i}")
        else:
            yield f".rows: row {i}: a mapping of keys was expected, not {brief(row)}"


def _in_vary(vary: Any) -> Iterator[str]:
    if not isinstance(vary, Mapping) or not vary:
        yield f".vary: recipe keys with lists of values were expected, not {brief(vary)}"
        return
    for key, values in vary.items():
        if not all(part.strip() for part in str(key).split(".")):
            yield f".vary: '{key}' is no recipe key"
        elif not isinstance(values, (list, tuple)) or not values:
            yield f".vary.{key}: a list of at least one value was expected, not {brief(values)}"
        else:
            for value in values:
                yield from _refused(nested(str(key), value), f".vary.{key}")


def _refused(part: Mapping[str, Any], where: str) -> Iterator[str]:
    """Name the keys that no single run may set: what runs code, and a sweep of its own."""
    found = [key for key in ("imports", SWEEP) if key in part]
    found += ["model.trust_remote_code"] * ("trust_remote_code" in section(part, "model"))
    for key in found:
        yield f"{where}: '{key}' cannot be set here, only for the whole recipe"


def _name(strategy: str, varied: Mapping[str, Any]) -> str:
    parts = [strategy]
    for key, value in varied.items():
        if key != "strategy":
            parts.append(f"{key}{_text(value)}" if key == "seed" else f"{key}={_text(value)}")
    name = re.sub(r"[^A-Za-z0-9._+=-]+", "_", "-".join(parts))[:LONGEST_NAME].strip(".-_")
    return name or "run"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = value is None or isinstance(value, (bool, int, float))
    return json.dumps(value) if number else brief(value).strip("[]")
