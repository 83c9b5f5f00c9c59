"""What EWC, GEM, A-GEM and replay add to plain training: ours, and Avalanche's plugins.

    python -m benchmarks.strategies [--steps 4] [--tasks ...]

Both train copies of the same model on the same examples, Avalanche's `Naive` with its EWCPlugin,
GEMPlugin, AGEMPlugin or ReplayPlugin beside our loop with our strategies; each is told over its own
side's plain training, task by task in turns. `step` is a step's time; `task` is the whole task's,
with what comes at its end (EWC's Fisher information: ours one example at a time, Avalanche's one
mini-batch). Settings are the same where both have them: margin 0.5, one batch of memories of each
task, half of what replay learns from memory. Plain Avalanche pads all texts to the longest of all
tasks and does not accumulate, so the two sides' times are not compared with each other, only what
they add.

How the added time grows with the number of past tasks is told as the exponent b of a * tasks^b,
fitted to a step's time less the plain step's.

Takes 2 minutes on 2 cores with `tiny` and all tasks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.avalanche_plugins import SupervisedPlugin, benchmark, naive, plugins
from benchmarks.record import record
from benchmarks.setting import Setting, parser, setting
from benchmarks.timing import exponent, seconds

STRENGTH = 1.0
OURS = {
    "sequential": [],
    "ewc": [f"ewc.strength={STRENGTH}"],
    "gem": ["gem.margin=0.5"],
    "agem": [],
    "replay": ["replay.schedule=interleaved", "replay.mix=0.5"],
}
Times = dict[tuple[str, str], list[list[float]]]


class Clock(SupervisedPlugin):
    """Times each iteration; it has to be the first of the plugins."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter() - self.began)


def measure(made: Setting) -> tuple[Times, dict[tuple[str, str], list[float]]]:
    """Return by side and strategy the seconds of each task's steps, and of each whole task."""
    first = made.loop("sequential", language_model=made.language_model)
    records = [made.suite.records[plan.task.name]["train"] for plan in made.plans]
    encoded = [first.encoded(r, plan) for r, plan in zip(records, made.plans, strict=True)]
    streams = {
        "ours": made.experiences(),
        "Avalanche": list(benchmark(encoded, first.pad).train_stream),
    }
    batch = made.recipe.optimizer.batch_size
    theirs = plugins(batch, batch, STRENGTH)
    clocks = {(side, name): Clock() for name in OURS for side in streams}
    runners: dict[tuple[str, str], Any] = {}
    for (side, name), clock in clocks.items():
        runners[side, name] = (
            made.loop(name, OURS[name], language_model=made.model("float32"), plugins=[clock])
            if side == "ours"
            else naive(made, [clock, *theirs[name]()])
        )
    steps: Times = {key: [] for key in runners}
    whole: dict[tuple[str, str], list[float]] = {key: [] for key in runners}
    for task in range(len(made.plans)):
        in_turn = list(runners) if task % 2 == 0 else list(runners)[::-1]
        for key in in_turn:
            clocks[key].steps = []
            whole[key].append(seconds(lambda k=key, t=task: learn(runners[k], streams[k[0]][t])))
            steps[key].append(clocks[key].steps)
    return steps, whole


def learn(runner: Any, experience: Any) -> None:
    runner.train(experience, eval_streams=[])


def by_tasks(
    steps: Times, whole: Mapping[tuple[str, str], Sequence[float]]
) -> list[dict[str, Any]]:
    """Return a row for each side, strategy and number of past tasks."""
    rows = []
    for (side, name), tasks in steps.items():
        for past, taken in enumerate(tasks):
            plain = statistics.median(steps[side, "sequential"][past])
            own = statistics.median(taken)
            rows.append(
                {
                    "name": name,
                    "side": side,
                    "past tasks": past,
                    "step ms": 1000 * own,
                    "step vs plain": own / plain,
                    "task vs plain": whole[side, name][past] / whole[side, "sequential"][past],
                }
            )
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each strategy and side: what it adds after one task and after all."""
    found = []
    for name, side in dict.fromkeys((row["name"], row["side"]) for row in rows):
        own = [r for r in rows if (r["name"], r["side"]) == (name, side) and r["past tasks"] > 0]
        if not own or name == "sequential":
            continue
        tasks = [row["past tasks"] for row in own]
        added = [row["step ms"] * (1 - 1 / row["step vs plain"]) for row in own]
        grows = len(own) > 1 and min(added) > 0.05 * own[0]["step ms"]
        found.append(
            {
                "name": name,
                "side": side,
                "step vs plain, 1 past task": own[0]["step vs plain"],
                f"{tasks[-1]} past tasks": own[-1]["step vs plain"],
                "task vs plain, median": statistics.median(r["task vs plain"] for r in own),
                "lowest": min(row["task vs plain"] for row in own),
                "highest": max(row["task vs plain"] for row in own),
                "exponent": exponent(tasks, added) if grows else None,
            }
        )
    return found


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--steps", type=int, default=4, help="of each task")
    arguments_of.add_argument("--batch-size", type=int, default=16, help="examples in a step")
    arguments = arguments_of.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    assignments = [
        "tasks.epochs=1",
        f"data.train_limit={arguments.steps * arguments.batch_size}",
        f"optimizer.batch_size={arguments.batch_size}",
        f"training.micro_batch_size={arguments.batch_size}",
        "optimizer.max_grad_norm=null",
        "optimizer.schedule=constant",
    ]
    if arguments.tasks:
        assignments.append(f"tasks.only=[{', '.join(arguments.tasks)}]")
    made = setting(arguments.model, arguments.data, assignments, device=arguments.device)
    rows = by_tasks(*measure(made))
    record("strategies", vars(arguments), summary(rows), more={"By task": rows}, out=arguments.out)


if __name__ == "__main__":
    main()
