"""Answering the test sets: TRACE's way, and ours.

    python -m benchmarks.scoring [--model PATH] [--data TRACE] [--examples 16]

TRACE's way is transformers' `generate` on batches of 4 in the data's order, padded on the left,
with up to 512 new tokens for every task (greedy here, to be comparable; TRACE itself samples at
temperature 0.1). Ours is what a run does after a task (`cl_mofo.examine.Examiner`) with the
recipe's defaults, and with `evaluation.metrics=headline`; without losses and cache. All get the
same prompt tokens and the same model, in float32, task by task in turns, and the time includes the
metrics. The model is first fine-tuned for a moment on all tasks at once, for one that has learned
nothing does not end its answers. Headline scores and texts are compared over the answers that both
ways ended; an answer that ours left unfinished is at its task's budget, or was settled before its
end.

Takes 10 s for `tiny`; for SmolLM2-135M on trace-500 with 12 examples of a task, 20 minutes on 2
cores, 6 of them fine-tuning.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Batch, Plain
from benchmarks.record import record
from benchmarks.setting import Setting, changed, parser, setting
from benchmarks.timing import seconds
from cl_mofo.config import EvaluationConfig
from cl_mofo.data.plan import TaskPlan, encoder_for, plan_tasks
from cl_mofo.discovery import registry
from cl_mofo.engine import Ranks
from cl_mofo.evaluation import mark_unfinished, score
from cl_mofo.examine import Examiner
from cl_mofo.folder import NoFolder
from cl_mofo.model import LanguageModel
from cl_mofo.observer import Observer
from cl_mofo.stopping import Stop

TRACE, OURS, HEADLINE = "TRACE's way", "ours", "ours, headline alone"
BATCH, NEW_TOKENS = 4, 512


@dataclass(frozen=True)
class Said:
    """An answer: whether it was generated as far as it is needed, and its tokens."""

    text: str
    finished: bool
    tokens: int


Way = Callable[[int], list[Said]]
"""From a task's number to the answers to its test set, which it has also scored."""


class TraceWay:
    """Answer in batches of four as they come, each until its last answer ends; then score."""

    def __init__(self, made: Setting, model: LanguageModel, new_tokens: int) -> None:
        self.made, self.model, self.new_tokens = made, model, new_tokens

    def __call__(self, task: int) -> list[Said]:
        plan = self.made.plans[task]
        rows = self.made.suite.records[plan.task.name]["test"]
        encoder = encoder_for(self.model.tokenizer, plan, self.made.recipe)
        said: list[Said] = []
        for start in range(0, len(rows), BATCH):
            prompts = [encoder.prompt(row["prompt"]) for row in rows[start : start + BATCH]]
            for ids in self._generated(prompts, encoder.eos):
                ended = encoder.eos in ids
                tokens = ids.index(encoder.eos) + 1 if ended else len(ids)
                said.append(Said(encoder.decode(ids), ended, tokens))
        headline(plan, said, rows)
        return said

    def _generated(self, prompts: list[list[int]], eos: int) -> list[list[int]]:
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=self.new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=eos
        )
        width = max(map(len, prompts))
        ids = torch.tensor([[eos] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        with torch.no_grad(), self.model.autocast():
            out = self.model.module.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=config,
            )
        found: list[list[int]] = out[:, width:].tolist()
        return found


class Kept(NoFolder):
    """Keeps the answers instead of writing them."""

    said: list[Said]

    def write_predictions(self, after: str, task: str, rows: Any) -> None:
        self.said = [
            Said(row["prediction"], row["finished"] or row.get("settled", False), row["tokens"])
            for row in rows
        ]


class OurWay:
    """Answer and score as a run does."""

    def __init__(self, made: Setting, model: LanguageModel, folder: Path, *settings: str) -> None:
        self.model, self.folder = model, Kept(folder)
        recipe = changed(made.recipe, ["evaluation.losses=false", *settings])
        records = made.suite.records
        self.examiner = Examiner(
            recipe, made.plans, records, self.folder, Observer(), Ranks(), Stop()
        )

    def __call__(self, task: int) -> list[Said]:
        self.examiner.test(self.model, 0, task)
        self.examiner.kept(0, task)
        return self.folder.said


def ways(made: Setting, model: LanguageModel, folder: Path, new_tokens: int) -> dict[str, Way]:
    uncached = ["evaluation.cache=false"] if "cache" in EvaluationConfig.model_fields else []
    found: dict[str, Way] = {
        TRACE: TraceWay(made, model, new_tokens),
        OURS: OurWay(made, model, folder, *uncached),
    }
    if "metrics" in EvaluationConfig.model_fields:
        found[HEADLINE] = OurWay(made, model, folder, *uncached, "evaluation.metrics=headline")
    return found


def tune(made: Setting, steps: int) -> LanguageModel:
    """Return the model after some steps on two examples of every task each."""
    short = ["tasks.prompt_tokens=192", "tasks.answer_tokens=48", "training.micro_batch_size=2"]
    recipe = changed(made.recipe, short)
    plans = plan_tasks(recipe, registry())
    brief = replace(made, recipe=recipe, plans=plans)
    plain = Plain(brief, "bfloat16")
    loop = brief.loop("sequential", language_model=made.language_model)
    rows = [
        loop.encoded(made.suite.records[plan.task.name]["train"][: 2 * steps], plan)
        for plan in plans
    ]
    batches: list[Batch] = [
        [examples[(2 * step + i) % len(examples)] for examples in rows for i in range(2)]
        for step in range(steps)
    ]
    plain.learn(0, batches)
    plain.model.module.eval()
    return replace(plain.model, compute_dtype=torch.float32)


def measure(
    made: Setting, model: LanguageModel, new_tokens: int = NEW_TOKENS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Answer all tasks in all ways; return the rows of the ways, and those of the tasks."""
    by_task = []
    with tempfile.TemporaryDirectory() as folder:
        contenders = ways(made, model, Path(folder), new_tokens)
        for task, plan in enumerate(made.plans):
            rows = made.suite.records[plan.task.name]["test"]
            in_turn = list(contenders) if task % 2 == 0 else list(contenders)[::-1]
            found = {name: timed(contenders[name], task) for name in in_turn}
            for name in contenders:
                taken, said = found[name]
                by_task.append(
                    {
                        "task": plan.task.name,
                        "name": name,
                        "examples": len(rows),
                        "seconds": taken,
                        "tokens": sum(each.tokens for each in said),
                        "unfinished": sum(not each.finished for each in said),
                        "headline score": headline(plan, said, rows),
                        **agreement(plan, found[TRACE][1], said, rows),
                    }
                )
    return totals(by_task), by_task


def timed(way: Way, task: int) -> tuple[float, list[Said]]:
    done: list[list[Said]] = []
    taken = seconds(lambda: done.append(way(task)))
    return taken, done[0]


def headline(plan: TaskPlan, said: Sequence[Said], rows: Sequence[Any]) -> float:
    references = [row["answer"] for row in rows]
    texts = mark_unfinished(
        [each.text for each in said], [each.finished for each in said], references
    )
    sources = [row["prompt"] for row in rows] if plan.task.needs_sources else None
    return score(plan.task, texts, references, sources)[plan.task.headline]


def agreement(
    plan: TaskPlan, theirs: Sequence[Said], ours: Sequence[Said], rows: Sequence[Any]
) -> dict[str, Any]:
    """Return what the answers that both ended have in common: the score, and which texts not."""
    both = [i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a.finished * b.finished]
    chosen = [[column[i] for i in both] for column in (theirs, ours, rows)]
    return {
        "both ended": len(both),
        "equal score": not both
        or headline(plan, chosen[0], chosen[2]) == headline(plan, chosen[1], chosen[2]),
        "other texts": sum(a.text != b.text for a, b in zip(*chosen[:2], strict=True)),
    }


def totals(by_task: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each way, over all tasks."""
    names = dict.fromkeys(row["name"] for row in by_task)
    columns = {name: [row for row in by_task if row["name"] == name] for name in names}

    def total(name: str, what: str) -> Any:
        return sum(row[what] for row in columns[name])

    def faster(name: str) -> list[float]:
        pairs = zip(columns[TRACE], columns[name], strict=True)
        return [base["seconds"] / own["seconds"] for base, own in pairs]

    return [
        {
            "name": name,
            "seconds": total(name, "seconds"),
            "vs TRACE": total(TRACE, "seconds") / total(name, "seconds"),
            "lowest": min(faster(name)),
            "highest": max(faster(name)),
            "tokens": total(name, "tokens"),
            "unfinished": total(name, "unfinished"),
            "both ended": total(name, "both ended"),
            "equal scores": all(row["equal score"] for row in columns[name]),
            "other texts": total(name, "other texts"),
        }
        for name in names
    ]


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--examples", type=int, default=16, help="of each task")
    arguments_of.add_argument("--tune-steps", type=int, default=24)
    arguments_of.add_argument("--lr", type=float, default=1e-4, help="of the fine-tuning")
    arguments = arguments_of.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    assignments = [
        f"data.test_limit={arguments.examples}",
        f"data.train_limit={2 * arguments.tune_steps}",
        f"optimizer.lr={arguments.lr}",
    ]
    if arguments.tasks:
        assignments.append(f"tasks.only=[{', '.join(arguments.tasks)}]")
    made = setting(arguments.model, arguments.data, assignments, device=arguments.device)
    rows, by_task = measure(made, tune(made, arguments.tune_steps))
    record("scoring", vars(arguments), rows, more={"By task": by_task}, out=arguments.out)


if __name__ == "__main__":
    main()
