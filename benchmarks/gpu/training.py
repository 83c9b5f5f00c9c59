"""Training on a GPU: MoFO over AdamW, utilisation, what determinism costs, and the other loops.

    python -m benchmarks.gpu.training [--size 1.1b] [--device cuda]

Random weights of TinyLlama's shape learn random texts of TRACE's lengths, in bfloat16 autocast.

First whole steps of our loop on a mix of all tasks, in turns: with AdamW, with MoFO, and with AdamW
and `deterministic: true`. `mfu` is 6 * parameters * tokens / time / 989e12 (an H200's dense
bfloat16), parameters without the input embedding, which multiplies nothing, and tokens without
padding; `mfu with attention` adds 6 * layers * hidden * length for each token of a text, which is
what causal attention computes. Neither is reduced for the head, which ours computes on supervised
positions alone; `mfu of what is computed` is, and has attention.

Then the sequence of tasks, one step each, in our loop, in Trainer and in a plain loop that batches
as TRACE does (`benchmarks.training`). Their float32 weights and moments take 70 GB together.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # which determinism needs from the start

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import training
from benchmarks.gpu.record import results_folder, write
from benchmarks.setting import Setting, setting
from benchmarks.synthetic import SHAPES
from benchmarks.timing import interleaved, ratios
from cl_mofo.data.suites import Suite
from cl_mofo.data.tokenise import Example

PEAK = 989e12
"""Floating-point operations per second of an H200 in dense bfloat16."""
LIMITS = {"1.1b": (64, 8, 12), "tiny": (8, 4, 2)}
"""By size: examples in a step, examples in a padded pass, and how often a step is timed."""


def mixed(made: Setting) -> Setting:
    """Return the setting with one task, whose single step takes as much of each of the tasks."""
    rows = [row for splits in made.suite.records.values() for row in splits["train"]]
    size = made.recipe.optimizer.batch_size
    taken = rows[:: max(1, len(rows) // size)][:size]
    plan = max(made.plans, key=lambda each: each.prompt_tokens + each.answer_tokens)
    splits = {"train": taken, "eval": taken[:1], "test": taken[:1]}
    return replace(made, plans=(plan,), suite=Suite({plan.task.name: splits}, (), {}))


def flops(made: Setting, shape: Sequence[int], examples: Sequence[Example]) -> dict[str, float]:
    """Return the floating-point operations of a step, counted in three ways."""
    hidden, layers, vocabulary = shape[0], shape[1], shape[-1]
    module = made.language_model.module
    head = hidden * vocabulary
    body = sum(parameter.numel() for parameter in module.parameters()) - 2 * head
    tokens, supervised = sum(map(len, examples)), sum(each.supervised for each in examples)
    attention = 6 * layers * hidden * sum(len(each) ** 2 for each in examples)
    return {
        "mfu": 6 * (body + head) * tokens,
        "mfu with attention": 6 * (body + head) * tokens + attention,
        "mfu of what is computed": 6 * (body * tokens + head * supervised) + attention,
    }


def whole_steps(made: Setting, shape: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Return a row for each way to take the same step."""
    mix = mixed(made)
    runners = {
        "AdamW": training.Ours(mix, "bfloat16", "sequential"),
        "MoFO(0.05)": training.Ours(mix, "bfloat16", "mofo"),
        "AdamW, deterministic": training.Ours(mix, "bfloat16", "sequential"),
    }

    def taking(name: str) -> Callable[[], object]:
        def take() -> None:
            torch.use_deterministic_algorithms("deterministic" in name)
            try:
                runners[name].learn(0, [])
            finally:
                torch.use_deterministic_algorithms(False)

        return take

    times = interleaved({name: taking(name) for name in runners}, repeats, warmup=2)
    examples = runners["AdamW"].loop.examples
    counted = flops(mix, shape, examples)
    rows = []
    for row in ratios(times, "AdamW"):
        work = runners[row["name"]].counted.work
        rows.append(
            {
                **row,
                "tokens": work.real,
                "tokens/s": 1000 * work.real / row["ms"],
                "computed/real": work.computed / work.real,
                **{how: 1000 * count / row["ms"] / PEAK for how, count in counted.items()},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=LIMITS, default="1.1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=results_folder() / "training.json")
    arguments = parser.parse_args()
    batch, micro, repeats = LIMITS[arguments.size]
    assignments = [
        "tasks.epochs=1",
        f"data.train_limit={batch}",
        f"optimizer.batch_size={batch}",
        f"training.micro_batch_size={micro}",
        "optimizer.schedule=constant",
    ]
    made = setting(f"random:{arguments.size}", None, assignments, device=arguments.device)
    found = {"rows": whole_steps(made, SHAPES[arguments.size], repeats), "more": {}}
    write(arguments.out, vars(arguments), found)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    sequence, by_task = training.measure(made, "bfloat16")
    found["more"] = {"The sequence of tasks": sequence, "Seconds by task": by_task}
    write(arguments.out, vars(arguments), found)


if __name__ == "__main__":
    main()
