"""From a recipe's `data` section to records: a folder in TRACE's layout, or the embedded suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_mofo.config import DataConfig, PerTask, Recipe
from cl_mofo.data.records import Splits, fingerprint, read_folder
from cl_mofo.discovery import Registry
from cl_mofo.errors import UserError, nearest
from cl_mofo.recipes import expand
from cl_mofo.task import Task

EMBEDDED = "trace-mini"
"""The suite that needs no folder; its tasks are those of `trace`."""


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


def plan_tasks(recipe: Recipe, known: Registry) -> tuple[TaskPlan, ...]:
    """Return the tasks in the order the recipe learns them, its overrides applied.

    Raises:
        UserError: the suite is unknown.
    """
    suite = "trace" if recipe.data.suite == EMBEDDED else recipe.data.suite
    tasks: Sequence[Task] = known.suite(suite)
    if not tasks:
        suites = sorted({task.suite for task in known.tasks.values()} | {EMBEDDED})
        raise UserError(
            f"recipe key data.suite: no task belongs to a suite '{recipe.data.suite}'"
            f"{nearest(recipe.data.suite, suites)}; known: {', '.join(suites)}"
        )
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


def _chosen(override: PerTask, name: str, default: int) -> int:
    return override.get(name, default) if isinstance(override, dict) else override or default


def load_suite(
    data: DataConfig, tasks: Sequence[str]
) -> tuple[dict[str, Splits], Mapping[str, str]]:
    """Load the tasks' records, the first `*_limit` of each split, and the hashes of all of them.

    Returns:
        {task: {"train" | "eval" | "test": records}}, {file or split: SHA-256 before limits}

    Raises:
        UserError: the data are missing or wrong (see `read_folder`), or a path is missing.
    """
    records: Mapping[str, Splits]
    if data.suite == EMBEDDED:
        from cl_mofo import mini

        everything = mini.records()
        missing = [task for task in tasks if task not in everything]
        if missing:
            raise UserError(
                f"the embedded suite '{EMBEDDED}' has no task {', '.join(missing)}; "
                f"it has {', '.join(everything)}. Give your own data with data.suite and data.path"
            )
        records = {task: everything[task] for task in tasks}
        hashes: Mapping[str, str] = fingerprint(records)
    else:
        if data.path is None:
            raise UserError(
                f"recipe key data.path: the suite '{data.suite}' needs the folder of its data; "
                f"give --data PATH, or take the embedded suite with --set data.suite={EMBEDDED}"
            )
        folder = read_folder(expand(data.path), tasks)
        records, hashes = folder.records, folder.hashes
    limits = {"train": data.train_limit, "eval": data.eval_limit, "test": data.test_limit}
    limited = {
        task: {split: list(rows[: limits[split]]) for split, rows in splits.items()}
        for task, splits in records.items()
    }
    return limited, hashes
