"""From predictions and references to a task's scores; needs neither a model nor torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import repeat

from cl_mofo.discovery import registry
from cl_mofo.errors import UserError
from cl_mofo.task import Task


def score(
    task: str | Task,
    predictions: Iterable[str],
    references: Iterable[str],
    sources: Iterable[str] | None = None,
) -> dict[str, float]:
    """Return all of a task's metrics, in percent.

    Args:
        task: a task, or the name of one (TRACE's are "C-STANCE", "FOMC", "MeetingBank", "Py150",
            "ScienceQA", "NumGLUE-cm", "NumGLUE-ds" and "20Minuten").
        predictions: the model's answers, as decoded: nothing is stripped.
        references: the right answers, in the same order.
        sources: the prompts, in the same order; only tasks with `needs_sources` read them.

    Returns:
        `{metric: percent}` with the keys of `task.metrics`, in their order.

    Raises:
        UserError: there is no such task; the lists are empty, of different lengths, or hold
            something that is no string; the sources are missing; or the task's own `measure`
            returns other metrics than it declares, or a figure that is no finite number.
    """
    if isinstance(task, str):
        task = registry().task(task)
    answers = _texts(task, "predictions", predictions)
    right = _texts(task, "references", references)
    _same_length(task, "predictions", answers, "references", right)
    prompts = None if sources is None else _texts(task, "sources", sources)
    if prompts is not None:
        _same_length(task, "predictions", answers, "sources", prompts)
    elif task.needs_sources:
        raise UserError(
            f"score({task.name}): {task.headline} compares an answer with its prompt too; "
            f"give the {len(answers)} prompts as sources"
        )
    if not answers:
        raise UserError(f"score({task.name}): there are no predictions, so there is no mean")
    return _declared(task, dict(task.measure(answers, right, prompts)))


def example_scores(
    task: Task,
    predictions: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str] | None,
    whole: float,
) -> list[float] | None:
    """Return the headline score of each example measured alone, in percent.

    Args:
        task: the task.
        predictions: as `score` was given them.
        references: the right answers.
        sources: the prompts, None if the task does not need them.
        whole: the headline score of them all.

    Returns:
        One score for each; None if their mean is not the whole's (to 1e-6): a metric of a corpus,
        such as a macro F1, is none of its examples.
    """
    alone: list[float] = []
    prompts = repeat(None) if sources is None else ([prompt] for prompt in sources)
    for prediction, reference, prompt in zip(predictions, references, prompts, strict=False):
        try:
            alone.append(float(task.measure([prediction], [reference], prompt)[task.headline]))
        except Exception:  # a correlation, say, is not defined for one example
            return None
    return alone if abs(sum(alone) / len(alone) - whole) <= 1e-6 else None


def mark_unfinished(
    predictions: Iterable[str], finished: Iterable[bool], references: Iterable[str]
) -> list[str]:
    """Return the predictions, with "…" after an unfinished one that equals its reference.

    A model cut off by its token budget has not said that its answer ends there. If what it wrote up
    to the cut happens to be the right answer, a longer, wrong answer would count as right. All
    other predictions stay as they are, so that the mark shows nowhere else.

    Args:
        predictions: the model's answers, in full or up to the budget.
        finished: for each, whether the model itself ended it.
        references: for each, the right answer.

    Raises:
        UserError: the three have different lengths.
    """
    answers, ended, right = list(predictions), list(finished), list(references)
    if not len(answers) == len(ended) == len(right):
        raise UserError(
            f"mark_unfinished: {len(answers)} predictions, {len(ended)} finished marks and "
            f"{len(right)} references; there must be one of each for every answer"
        )
    return [
        answer + "…" if not done and answer == reference else answer
        for answer, done, reference in zip(answers, ended, right, strict=True)
    ]


def _texts(task: Task, what: str, given: Iterable[str]) -> Sequence[str]:
    if isinstance(given, str):
        raise UserError(f"score({task.name}): {what} is one string; give a list of strings")
    # A sequence may be larger than memory, and read its texts when they are asked for.
    texts = given if isinstance(given, Sequence) else list(given)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(
                f"score({task.name}): {what}[{i}] is {text!r}, of type {type(text).__name__}, "
                f"not a string"
            )
    return texts


def _same_length(
    task: Task, one: str, ones: Sequence[str], other: str, others: Sequence[str]
) -> None:
    if len(ones) != len(others):
        raise UserError(
            f"score({task.name}): {len(ones)} {one} but {len(others)} {other}; "
            f"they are compared one by one, so there must be as many of each"
        )


def _declared(task: Task, measured: dict[str, float]) -> dict[str, float]:
    if set(measured) != set(task.metrics):
        raise UserError(
            f"task {task.name}: its measure returned {', '.join(sorted(measured))}, but it names "
            f"the metrics {', '.join(sorted(task.metrics))}. Make the two agree in its file"
        )
    for metric, value in measured.items():
        if not math.isfinite(value):
            raise UserError(
                f"task {task.name}: its measure returned {metric} = {value}; scores are percents"
            )
    return {metric: float(measured[metric]) for metric in task.metrics}
