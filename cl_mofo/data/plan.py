"""Which tasks a run learns, in which order, with which epochs and budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cl_mofo.config import EMBEDDED, PerTask, Recipe
from cl_mofo.data.tokenise import Encoder
from cl_mofo.discovery import Registry
from cl_mofo.errors import UserError, nearest
from cl_mofo.task import Task


@dataclass(frozen=True)
class TaskPlan:
    """A task as a run will learn it.

    Args:
        task: the task.
        epochs: passes over its training split.
        prompt_tokens: most prompt tokens kept, a beginning-of-sequence token included.
        answer_tokens: most answer tokens, the end-of-sequence token not counted.
    """

    task: Task
    epochs: int
    prompt_tokens: int
    answer_tokens: int


def encoder_for(tokenizer: Any, plan: TaskPlan, recipe: Recipe) -> Encoder:
    """Return the encoder of a task's records under a recipe, for a model's tokenizer."""
    joint = recipe.training.tokenisation == "joint"
    return Encoder(tokenizer, plan.prompt_tokens, plan.answer_tokens, joint=joint)


def plan_tasks(recipe: Recipe, known: Registry) -> tuple[TaskPlan, ...]:
    """Return the tasks in the order the recipe learns them, its overrides applied.

    Raises:
        UserError: the suite is unknown.
    """
    tasks: Sequence[Task] = _suite(recipe.data.suite, known)
    if recipe.tasks.only is not None:
        tasks = [known.task(name) for name in recipe.tasks.only]
    return tuple(
        TaskPlan(
            task,
            _chosen(recipe.tasks.epochs, task.name, task.epochs),
            _chosen(recipe.tasks.prompt_tokens, task.name, task.prompt_tokens),
            _chosen(recipe.tasks.answer_tokens, task.name, task.answer_tokens),
        )
        for task in tasks
    )


def _suite(name: str, known: Registry) -> Sequence[Task]:
    if name == EMBEDDED:
        from cl_mofo import mini

        return [known.task(task) for task in mini.TASKS]
    tasks = known.suite(name)
    if not tasks:
        suites = sorted({task.suite for task in known.tasks.values()} | {EMBEDDED})
        raise UserError(
            f"recipe key data.suite: no task belongs to a suite '{name}'{nearest(name, suites)}; "
            f"known: {', '.join(suites)}"
        )
    return tasks


def _chosen(override: PerTask, name: str, default: int) -> int:
    return override.get(name, default) if isinstance(override, dict) else override or default
