"""Tables of what can be named (strategies, tasks, runs) and of what `check-data` found."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from cl_mofo.config import SWEEP, Recipe
from cl_mofo.data.check import FolderCheck
from cl_mofo.discovery import registry
from cl_mofo.expansion import expand, strategy_of
from cl_mofo.recipes import builtin_recipes, read_recipe
from cl_mofo.strategy import settings


def strategies(imports: tuple[Path, ...] = ()) -> Table:
    """Each strategy with its one line and its settings."""
    table = Table("strategy", "what it is", "settings (defaults)")
    for name, strategy in sorted(registry(imports).strategies.items()):
        module = inspect.getmodule(strategy)
        text = inspect.getdoc(module) or inspect.getdoc(strategy) or ""
        given = ", ".join(f"{name}.{k}={_as_set(v)}" for k, v in settings(strategy).items())
        table.add_row(escape(name), escape(text.split("\n\n")[0]), escape(given))
    return table


def _as_set(value: Any) -> str:
    """Return a value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def tasks(imports: tuple[Path, ...] = ()) -> Table:
    """Each task with its suite, language, epochs, metrics and budgets."""
    table = Table("task", "suite", "language", "epochs", "metrics (headline first)", "budgets")
    known = registry(imports).tasks.values()
    for task in sorted(known, key=lambda t: (t.suite, t.position, t.name)):
        others = [metric for metric in task.metrics if metric != task.headline]
        table.add_row(
            escape(task.name),
            escape(task.suite),
            task.language,
            str(task.epochs),
            escape(", ".join([task.headline, *others])),
            f"{task.prompt_tokens} + {task.answer_tokens}",
        )
    return table


def runs(imports: tuple[Path, ...] = ()) -> Table:
    """Each built-in recipe with the comment it opens with."""
    table = Table("run", "what it is", "model", "strategy")
    for name, text in builtin_recipes().items():
        recipe = yaml.safe_load(text)
        comment = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
        table.add_row(
            name,
            escape(comment[0] if comment else ""),
            escape(str(recipe.get("model", {}).get("path", ""))),
            escape(_what_runs(name, recipe)),
        )
    return table


def _what_runs(name: str, recipe: Mapping[str, Any]) -> str:
    """Return the strategy of a recipe, or how many a sweep runs: `11 strategies x 3 seeds`."""
    if SWEEP not in recipe:
        return str(recipe.get("strategy", ""))
    runs = list(expand(read_recipe(name)).values())
    default = Recipe.model_fields["seed"].default
    strategies = sorted({strategy_of(run) for run in runs})
    seeds = len({run.get("seed", default) for run in runs})
    text = strategies[0] if len(strategies) == 1 else f"{len(strategies)} strategies"
    text += f" x {seeds} seeds" if seeds > 1 else ""
    return text if len(strategies) * seeds == len(runs) else f"{len(runs)} runs: {text}"


def checks(found: FolderCheck) -> Table:
    """Each task's sizes, token lengths, and the share of records its budgets cut."""
    table = Table(padding=(0, 0, 0, 1))
    table.add_column("task", no_wrap=True)
    for column in ("train/eval/test", "prompt", "cut", "answer", "cut"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.tasks:
        table.add_row(
            escape(row.task),
            "/".join(str(size) for size in row.sizes.values()),
            f"{row.prompt_tokens[0]:.0f} ({row.prompt_tokens[1]})",
            f"{row.cut_prompts:.0%} at {row.budgets[0]}",
            f"{row.answer_tokens[0]:.0f} ({row.answer_tokens[1]})",
            f"{row.cut_answers:.0%} at {row.budgets[1]}",
        )
    return table
