"""Answering the test sets: TRACE's way, and ours.

    python -m benchmarks.scoring [--model PATH] [--data TRACE] [--examples 16]

TRACE's way is transformers' `generate` on batches of 4 in the data's order, padded on the left,
with up to 512 new tokens for every task (greedy here, to be comparable; TRACE itself samples
at temperature 0.1). Ours is `cl_mofo.evaluation.generate.answer` with the recipe's defaults. Both
get the same prompt tokens and the same model, in float32, task by task in turns. The model is first
fine-tuned for a moment on all tasks at once, for one that has learned nothing does not end its
answers. Of every task the headline metric is compared, over the answers that both ways ended, and
their texts one by one; an answer that ours left unfinished is at its task's budget.

Takes 10 s for `tiny`; for SmolLM2-135M on trace-500 with 16 examples of a task, 8 minutes on 2
cores, 2 of them fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.contenders import Batch, Plain
from benchmarks.record import record
from benchmarks.setting import Setting, changed, parser, setting
from benchmarks.timing import seconds
from cl_mofo.data.plan import TaskPlan, encoder_for, plan_tasks
from cl_mofo.data.tokenise import Encoder
from cl_mofo.discovery import registry
from cl_mofo.evaluation import mark_unfinished, score
from cl_mofo.evaluation.generate import Answer, answer
from cl_mofo.model import LanguageModel

TRACE, OURS = "TRACE's way", "ours"
BATCH, NEW_TOKENS = 4, 512

Way = Callable[[LanguageModel, Encoder, Sequence[str]], list[Answer]]


def trace_way(model: LanguageModel, encoder: Encoder, prompts: Sequence[str]) -> list[Answer]:
    """Answer in batches of four as they come, each until its last answer ends."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=encoder.eos,
        pad_token_id=encoder.eos,
    )
    answers = []
    for start in range(0, len(prompts), BATCH):
        rows = [encoder.prompt(prompt) for prompt in prompts[start : start + BATCH]]
        width = max(map(len, rows))
        ids = torch.tensor([[encoder.eos] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad(), model.autocast():
            out = model.module.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
            )
        for generated in out[:, width:].tolist():
            ended = encoder.eos in generated
            tokens = generated.index(encoder.eos) + 1 if ended else len(generated)
            answers.append(Answer(encoder.decode(generated), ended, tokens))
    return answers


def ways(made: Setting) -> dict[str, Way]:
    def ours(model: LanguageModel, encoder: Encoder, prompts: Sequence[str]) -> list[Answer]:
        return answer(model, encoder, prompts, made.recipe.evaluation)

    return {TRACE: trace_way, OURS: ours}


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


def measure(made: Setting, model: LanguageModel) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answer all tasks in all ways; return the rows of the ways, and further tables."""
    by_task = []
    for number, plan in enumerate(made.plans):
        rows = made.suite.records[plan.task.name]["test"]
        prompts = [row["prompt"] for row in rows]
        encoder = encoder_for(model.tokenizer, plan, made.recipe)
        contenders = ways(made)
        in_turn = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        found: dict[str, tuple[float, list[Answer]]] = {}
        for name in in_turn:
            found[name] = timed(contenders[name], model, encoder, prompts)
        for name in contenders:
            taken, answers = found[name]
            by_task.append(
                {
                    "task": plan.task.name,
                    "name": name,
                    "examples": len(rows),
                    "seconds": taken,
                    "tokens": sum(each.tokens for each in answers),
                    "unfinished": sum(not each.finished for each in answers),
                    "headline score": headline(plan, answers, rows),
                    **agreement(plan, found[TRACE][1], answers, rows),
                }
            )
    return totals(by_task), {"By task": by_task}


def timed(
    way: Way, model: LanguageModel, encoder: Encoder, prompts: Sequence[str]
) -> tuple[float, list[Answer]]:
    done: list[list[Answer]] = []
    taken = seconds(lambda: done.append(way(model, encoder, prompts)))
    return taken, done[0]


def headline(plan: TaskPlan, answers: Sequence[Answer], rows: Sequence[Any]) -> float:
    references = [row["answer"] for row in rows]
    texts = mark_unfinished(
        [each.text for each in answers], [each.finished for each in answers], references
    )
    sources = [row["prompt"] for row in rows] if plan.task.needs_sources else None
    return score(plan.task, texts, references, sources)[plan.task.headline]


def agreement(
    plan: TaskPlan, theirs: Sequence[Answer], ours: Sequence[Answer], rows: Sequence[Any]
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
    rows, more = measure(made, tune(made, arguments.tune_steps))
    record("scoring", vars(arguments), rows, more=more, out=arguments.out)


if __name__ == "__main__":
    main()
