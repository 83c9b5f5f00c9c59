"""What checkpoints cost: their share of training time, and the way back to the first step.

`python benchmarks/checkpoints.py [KEY=VALUE ...]` makes the demo's MoFO run with its default
interval; then it stops one in the middle and goes on with it. It prints ratios of times of one
process.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cl_mofo
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
    recipe = override({}, ["evaluation.initial=false", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        results = cl_mofo.run(recipe, out=Path(folder, "whole"))
        training = results["seconds"]["training"]
        share = sum(spent) / training
        each = 1000 * sum(spent) / len(spent)
        print(
            f"{len(spent)} checkpoints, {each:.0f} ms each: {sum(spent):.2f} s of {training:.1f} s "
            f"of training, {share:.1%}"
        )
        begun = Clock(leave_after=100)
        every = override(recipe, ["checkpoint.every_steps=99"])
        try:
            cl_mofo.run(every, out=Path(folder, "cut"), observer=begun)
        except KeyboardInterrupt:
            gone_on = Clock(leave_after=101)
            with contextlib.suppress(KeyboardInterrupt):
                cl_mofo.resume(Path(folder, "cut"), observer=gone_on)
        print(
            f"to the first step: {begun.first:.2f} s of a new run, {gone_on.first:.2f} s of one "
            f"that goes on, {gone_on.first / begun.first:.2f} times as long"
        )


if __name__ == "__main__":
    main()
