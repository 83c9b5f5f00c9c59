"""What is compared: which model, which tasks, and a loop over them under a recipe."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks import synthetic
from cl_mofo.compat import repair_torchvision
from cl_mofo.config import Recipe
from cl_mofo.data.benchmark import make_benchmark
from cl_mofo.data.plan import TaskPlan, plan_tasks
from cl_mofo.data.suites import Suite, load_suite
from cl_mofo.discovery import registry
from cl_mofo.experiment import as_recipe
from cl_mofo.loop import Loop
from cl_mofo.mappings import override
from cl_mofo.model import LanguageModel, load_model
from cl_mofo.recipes import to_mapping
from cl_mofo.resolve import resolve, strategies_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SCALES = {"small": 0.3, "tiny": 0.05}
"""How much shorter than TRACE's the random texts of the smallest models are."""


@dataclass(frozen=True)
class Setting:
    """A model, tasks and their records, under a recipe."""

    recipe: Recipe
    plans: tuple[TaskPlan, ...]
    suite: Suite
    language_model: LanguageModel

    def model(self, dtype: str | None = None) -> LanguageModel:
        """Return a copy of the model, that computes in a type."""
        module = copy.deepcopy(self.language_model.module)
        chosen = DTYPES[dtype] if dtype else self.language_model.compute_dtype
        return replace(self.language_model, module=module, compute_dtype=chosen)

    def loop(
        self,
        strategy: str,
        assignments: Sequence[str] = (),
        *,
        language_model: LanguageModel,
        plugins: Sequence[Any] = (),
    ) -> Loop:
        """Return a loop that trains a model by a strategy, with `key=value` changes of the recipe.

        MoFO's fraction and the others' settings are their defaults.
        """
        recipe = changed(self.recipe, [f"strategy={strategy}", *assignments])
        return Loop(
            language_model=language_model,
            plans=self.plans,
            recipe=recipe,
            strategies=strategies_of(recipe, registry()),
            auxiliary=self.suite.auxiliary,
            plugins=plugins,
        )

    def experiences(self) -> list[Any]:
        return list(make_benchmark(self.suite.records).train_stream)


def changed(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    return resolve(override(to_mapping(recipe), assignments))


def setting(
    model: str, data: Path | None, assignments: Sequence[str] = (), *, device: str = "auto"
) -> Setting:
    """Load a model and its tasks.

    Args:
        model: a checkpoint's folder, `tiny`, or `random:SHAPE` (`benchmarks.synthetic.SHAPES`).
        data: a TRACE folder; without one the embedded suite, or for random weights random texts of
            TRACE's lengths.
        assignments: `key=value` changes of the recipe.
        device: "auto", "cpu" or "cuda".
    """
    repair_torchvision()
    transformers_logging.disable_progress_bar()
    name, _, shape = model.partition(":")
    random = name == "random"
    wanted: dict[str, Any] = {"model": {"path": "tiny" if random else model, "device": device}}
    if data is not None or random:
        wanted |= {"data": {"suite": "trace", "path": str(data)}, "tasks": {"epochs": 1}}
    recipe = as_recipe(override(wanted, ["strategy=sequential", *assignments]))
    plans = plan_tasks(recipe, registry())
    if not random:
        suite = load_suite(recipe.data, [plan.task.name for plan in plans])
        return Setting(recipe, plans, suite, load_model(recipe.model))
    shapes = synthetic.SHAPES[shape]
    limits = recipe.data.train_limit or 64, recipe.data.test_limit or 64
    texts = synthetic.suite(*limits, shapes[-1], scale=SCALES.get(shape, 1.0))
    chosen = {plan.task.name: texts[plan.task.name] for plan in plans}
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    dtype = DTYPES.get(recipe.model.compute_dtype, torch.bfloat16)
    return Setting(recipe, plans, Suite(chosen, (), {}), synthetic.llama(shapes, where, dtype))


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what all comparisons on models take."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default="tiny", help="folder, 'tiny', or 'random:135m'")
    made.add_argument("--data", type=Path, help="TRACE folder; the embedded suite without it")
    made.add_argument("--tasks", nargs="+", help="some of the tasks, in this order")
    made.add_argument("--threads", type=int, help="torch's threads")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made.add_argument("--out", type=Path, help="file or folder instead of benchmarks/results")
    return made
