"""Training on the sequence of tasks: a plain loop as TRACE's, Hugging Face's Trainer, and ours.

    python -m benchmarks.training [--model PATH] [--data TRACE] [--trace CODE] [--steps 1]

Compared are (a) a plain loop that batches as TRACE's code does (micro-batches that are not sorted,
padded on the left, logits of all positions), (b) transformers.Trainer, (c) ours with `sequential`
and (d) ours with `mofo`. They train copies of the same model on the same examples in the same
steps, with torch's fused AdamW, a constant learning rate and clipping at 1, in float32 and in
bfloat16 autocast; task by task in turns, so that noise hits all alike. Records are tokenised
before, for all; of Trainer only the steps count, not its making for each task. That (a), (b) and
(c) do the same work is seen from their losses. Each starts every task from the same weights with
new moments, and is gone before the next one is made: one model at a time. With --trace, the folder
of TRACE's own code, (e) is (a) with TRACE's own collator, which tokenises jointly.

The ratio is of the whole sequence's times; beside it stand those of single tasks. Peak memory is
that of a process of its own that takes one step of --memory-task (on CUDA, of the allocator).

Takes 6 s for `tiny`. --prompt-tokens, --micro-batch and --tasks make it smaller.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Batch, Contender, HuggingFace, Ours, Plain, Work, batches
from benchmarks.record import record
from benchmarks.setting import Setting, parser, setting
from benchmarks.timing import seconds
from benchmarks.tracecode import collator

PLAIN, TRAINER, OURS, MOFO, TRACE = (
    "plain, as TRACE batches",
    "Trainer",
    "ours, AdamW",
    "ours, MoFO",
    "plain, TRACE's collator",
)


def contenders(made: Setting, dtype: str, trace: Path | None) -> dict[str, Callable[[], Contender]]:
    """Return what makes each contender, by name."""
    known: dict[str, Callable[[], Contender]] = {
        PLAIN: lambda: Plain(made, dtype),
        TRAINER: lambda: HuggingFace(made, dtype),
        OURS: lambda: Ours(made, dtype, "sequential"),
        MOFO: lambda: Ours(made, dtype, "mofo"),
    }
    if trace is not None:
        known[TRACE] = lambda: Plain(made, dtype, collator(trace, made))
    return known


def measure(
    made: Setting, dtype: str, trace: Path | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train every contender on every task; return the rows of the sequence and of the tasks."""
    makers = contenders(made, dtype, trace)
    works: dict[str, list[Work]] = {name: [] for name in makers}
    examples = 0
    for task in range(len(made.plans)):
        drawn = batches(made, task)
        examples += sum(len(batch) for batch in drawn)
        in_turn = list(makers) if task % 2 == 0 else list(makers)[::-1]
        for name in in_turn:
            works[name].append(timed(makers[name](), task, drawn))
            gc.collect()  # trainers are known by what they know
    times = {name: [work.seconds for work in done] for name, done in works.items()}
    rows = []
    for name, taken in times.items():
        faster = [base / own for base, own in zip(times[PLAIN], taken, strict=True)]
        gib = [work.gib for work in works[name] if work.gib is not None]
        computed, real = (
            sum(getattr(w, what) for w in works[name]) for what in ("computed", "real")
        )
        rows.append(
            {
                "name": name,
                "precision": dtype,
                "examples/s": examples / sum(taken),
                "vs plain": sum(times[PLAIN]) / sum(taken),
                "lowest": min(faster),
                "highest": max(faster),
                "vs Trainer": sum(times[TRAINER]) / sum(taken),
                "computed/real": computed / real,
                "first loss": works[name][0].losses[0],
                "loss apart": apart(works[PLAIN], works[name]) if name != MOFO else None,
                **({"GiB above weights": max(gib)} if gib else {}),
            }
        )
    by_task = [
        {
            "task": plan.task.name,
            "precision": dtype,
            "examples": len(made.suite.records[plan.task.name]["train"]),
            **{name: round(taken[task], 4) for name, taken in times.items()},
        }
        for task, plan in enumerate(made.plans)
    ]
    return rows, by_task


def timed(runner: Contender, task: int, drawn: Sequence[Batch]) -> Work:
    """Return what a contender has done for a task, with its seconds and a GPU's memory."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_allocated()
    done: list[Work] = []
    taken = seconds(lambda: done.append(runner.learn(task, drawn)))
    work = done[0]
    work.seconds = work.seconds or taken
    if on_gpu:
        work.gib = (torch.cuda.max_memory_allocated() - resting) / 2**30
    return work


def apart(ours: Sequence[Work], theirs: Sequence[Work]) -> float:
    """Return the largest relative difference between the losses of two contenders' steps."""
    return max(
        abs(a - b) / abs(a)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.losses, other.losses, strict=True)
    )


def peak(made: Setting, dtype: str, trace: Path | None, name: str) -> float:
    """Return the GiB that a contender needs at most for one step, of this process or of CUDA."""
    runner = contenders(made, dtype, trace)[name]()
    drawn = batches(made, 0)[:1]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    runner.learn(0, drawn)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resident_peak()


def resident_peak() -> float:
    """Return the GiB of memory that this process held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the process that started this one held, too
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peaks(arguments: argparse.Namespace, dtype: str, names: Sequence[str]) -> dict[str, float]:
    """Return each contender's peak, from a process of its own."""
    given = {
        "--model": arguments.model,
        "--data": arguments.data,
        "--trace": arguments.trace,
        "--tasks": arguments.memory_task,
        "--device": arguments.device,
        "--threads": arguments.threads,
        "--prompt-tokens": arguments.prompt_tokens,
        "--batch-size": arguments.batch_size,
        "--micro-batch": arguments.micro_batch,
        "--precision": dtype,
        "--steps": 1,
    }
    found = {}
    for name in names:
        words = [str(w) for key, value in given.items() if value is not None for w in (key, value)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.training", *words, "--only", name],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])["peak_gib"]
    return found


def parse() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--trace", type=Path, help="the folder of TRACE's own code, if you have it")
    made.add_argument("--steps", type=int, default=1, help="of each task")
    made.add_argument("--batch-size", type=int, default=16, help="examples in a step")
    made.add_argument("--micro-batch", type=int, default=16, help="of (a) and (b), at most")
    made.add_argument("--prompt-tokens", type=int, help="cut prompts to so many")
    made.add_argument("--answer-tokens", type=int, help="cut answers to so many")
    made.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    made.add_argument("--memory-task", help="measure peak memory on this task too")
    made.add_argument("--only", help=argparse.SUPPRESS)
    return made.parse_args()


def assignments(arguments: argparse.Namespace) -> list[str]:
    found = [
        "tasks.epochs=1",
        f"data.train_limit={arguments.steps * arguments.batch_size}",
        f"optimizer.batch_size={arguments.batch_size}",
        f"training.micro_batch_size={arguments.micro_batch}",
        "optimizer.schedule=constant",
        "optimizer.max_grad_norm=1.0",
        "optimizer.lr=1e-5",
    ]
    if arguments.prompt_tokens:
        found.append(f"tasks.prompt_tokens={arguments.prompt_tokens}")
    if arguments.answer_tokens:
        found.append(f"tasks.answer_tokens={arguments.answer_tokens}")
    if arguments.tasks:
        found.append(f"tasks.only=[{', '.join(arguments.tasks)}]")
    return found


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    made = setting(arguments.model, arguments.data, assignments(arguments), device=arguments.device)
    if arguments.only:
        found = peak(made, arguments.precision[0], arguments.trace, arguments.only)
        print(json.dumps({"peak_gib": found}))
        return
    rows, by_task = [], []
    for dtype in arguments.precision:
        measured, of_tasks = measure(made, dtype, arguments.trace)
        if arguments.memory_task:
            found = peaks(arguments, dtype, [row["name"] for row in measured])
            measured = [row | {"peak GiB": found[row["name"]]} for row in measured]
        rows += measured
        by_task += of_tasks
    record("training", vars(arguments), rows, more={"Seconds by task": by_task}, out=arguments.out)


if __name__ == "__main__":
    main()
