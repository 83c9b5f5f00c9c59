"""Look at a TRACE folder before a run: sizes, token lengths, truncation, and what is unusual."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cl_mofo.data.plan import TaskPlan
from cl_mofo.data.records import AUXILIARY, SPLITS, Record, Splits, read_folder


@dataclass(frozen=True)
class TaskCheck:
    """What was found in one task's files.

    Args:
        task: its name.
        sizes: records by split.
        prompt_tokens: (median, longest) over all splits, without the beginning of sequence.
        answer_tokens: (median, longest) over all splits, without the end of sequence.
        cut_prompts: share of prompts longer than the budget, 0 to 1.
        cut_answers: share of answers longer than the budget, 0 to 1.
        budgets: (prompt, answer) budgets in tokens.
        duplicates: by split, records equal to an earlier one of the same split.
        overlap: test records whose prompt is also a training prompt.
    """

    task: str
    sizes: Mapping[str, int]
    prompt_tokens: tuple[float, int]
    answer_tokens: tuple[float, int]
    cut_prompts: float
    cut_answers: float
    budgets: tuple[int, int]
    duplicates: Mapping[str, int]
    overlap: int


@dataclass(frozen=True)
class FolderCheck:
    """What was found in a folder: a row per task, and remarks on what is unusual."""

    tasks: tuple[TaskCheck, ...]
    remarks: tuple[str, ...]


def check_folder(path: str | Path, plans: Sequence[TaskPlan], tokenizer: Any) -> FolderCheck:
    """Check every task's files and measure them.

    Args:
        path: the suite's folder.
        plans: the tasks with their budgets.
        tokenizer: a Hugging Face tokenizer, which says what a token is.

    Raises:
        UserError: with every problem that would stop a run (see `read_folder`).
    """
    folder = read_folder(path, [plan.task.name for plan in plans])
    checks = tuple(_check(plan, folder.records[plan.task.name], tokenizer) for plan in plans)
    return FolderCheck(checks, (*_remarks(checks), *_auxiliary(folder.auxiliary)))


def _check(plan: TaskPlan, splits: Splits, tokenizer: Any) -> TaskCheck:
    rows = [record for split in SPLITS for record in splits[split]]
    prompts = _lengths(tokenizer, [row["prompt"] for row in rows])
    answers = _lengths(tokenizer, [row["answer"] for row in rows])
    bos = 0 if tokenizer.bos_token_id is None else 1
    training = {row["prompt"] for row in splits["train"]}
    return TaskCheck(
        task=plan.task.name,
        sizes={split: len(splits[split]) for split in SPLITS},
        prompt_tokens=(median(prompts), max(prompts)),
        answer_tokens=(median(answers), max(answers)),
        cut_prompts=sum(n + bos > plan.prompt_tokens for n in prompts) / len(prompts),
        cut_answers=sum(n > plan.answer_tokens for n in answers) / len(answers),
        budgets=(plan.prompt_tokens, plan.answer_tokens),
        duplicates={split: _duplicates(splits[split]) for split in SPLITS},
        overlap=sum(row["prompt"] in training for row in splits["test"]),
    )


def _lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    return [len(ids) for ids in encoded["input_ids"]]


def _duplicates(rows: Sequence[Record]) -> int:
    return len(rows) - len({(row["prompt"], row["answer"]) for row in rows})


def _remarks(checks: Sequence[TaskCheck]) -> list[str]:
    remarks = []
    for check in checks:
        for split, count in check.duplicates.items():
            if count:
                remarks.append(
                    f"{check.task}/{split}.json: {count} of {check.sizes[split]} records repeat an "
                    f"earlier one"
                )
        if check.overlap:
            remarks.append(
                f"{check.task}: {check.overlap} of {check.sizes['test']} test prompts are in the "
                f"training split too"
            )
    for split in SPLITS:
        sizes = Counter(check.sizes[split] for check in checks)
        usual, times = sizes.most_common(1)[0]
        if times > 1:
            remarks += [
                f"{check.task}/{split}.json: {check.sizes[split]} records where most tasks have "
                f"{usual}"
                for check in checks
                if check.sizes[split] != usual
            ]
    return remarks


def _auxiliary(records: Sequence[Record]) -> list[str]:
    if not records:
        return [f"no {AUXILIARY}/train.json: replay learns rows of earlier tasks only"]
    return [f"{AUXILIARY}/train.json: {len(records)} records of no task, which replay learns too"]
