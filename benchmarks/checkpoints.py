"""What checkpoints cost: their share of training time, and the way back to the first step.

    python -m benchmarks.checkpoints [KEY=VALUE ...]

makes the demo's MoFO run with its default interval; then it stops one after 100 steps and goes on
with it. All in one process, which takes half a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import cl_mofo
from benchmarks.record import record
from cl_mofo.checkpoint.store import Store
from cl_mofo.loop import Loop
from cl_mofo.observer import Observer
from cl_mofo.recipes import override


class Clock(Observer):
    """Note when the first step was taken, and leave after some step if asked to."""

    def __init__(self, leave_after: int | None = None) -> None:
        self.began, self.first = time.perf_counter(), 0.0
        self.leave_after = leave_after

    def stepped(self, loop: Loop) -> None:
        self.first = self.first or time.perf_counter() - self.began
        if loop.global_step == self.leave_after:
            raise KeyboardInterrupt


def main() -> None:
    spent: list[float] = []
    save = Store.save

    def timed(self: Store, *args: Any, **kwargs: Any) -> str:
        began = time.perf_counter()
        try:
            return save(self, *args, **kwargs)
        finally:
            spent.append(time.perf_counter() - began)

    Store.save = timed  # type: ignore[method-assign]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assignments", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--out", type=Path, help="file or folder instead of benchmarks/results")
    arguments = parser.parse_args()
    recipe = override({}, ["evaluation.initial=false", *arguments.assignments])
    with tempfile.TemporaryDirectory() as folder:
        results = cl_mofo.run(recipe, out=Path(folder, "whole"))
        begun = Clock(leave_after=100)
        every = override(recipe, ["checkpoint.every_steps=99"])
        try:
            cl_mofo.run(every, out=Path(folder, "cut"), observer=begun)
        except KeyboardInterrupt:
            gone_on = Clock(leave_after=101)
            with contextlib.suppress(KeyboardInterrupt):
                cl_mofo.resume(Path(folder, "cut"), observer=gone_on)
        else:
            raise SystemExit("the run has fewer than 100 steps")
    training = results["seconds"]["training"]
    row = {
        "checkpoints": len(spent),
        "ms each": 1000 * sum(spent) / len(spent),
        "seconds of training": training,
        "share of it": sum(spent) / training,
        "to the first step, new": begun.first,
        "going on": gone_on.first,
        "ratio": gone_on.first / begun.first,
    }
    record("checkpoints", vars(arguments), [row], out=arguments.out)


if __name__ == "__main__":
    main()
