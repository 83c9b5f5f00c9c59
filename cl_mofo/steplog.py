"""An Avalanche plugin that keeps one row of figures per optimizer step and tells the observer."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from cl_mofo.compat import repair_torchvision
from cl_mofo.observer import Observer

if TYPE_CHECKING:
    from cl_mofo.loop import Loop
    from cl_mofo.update import Outcome

repair_torchvision()

from avalanche.core import SupervisedPlugin  # noqa: E402


class StepLog(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Keep rows of step figures.

    Each row: task, stage (of the task), epoch (from 0), step (of the task, from 1), global_step,
    lr, loss (nats, as `training.loss` averages it), grad_norm (before clipping), skipped (1 where
    one of these two was not finite, and nothing was updated), supervised (tokens learned), tokens
    (all that are no padding), positions (computed, padding included), seconds, and what strategies
    put into `Loop.figures`.
    """

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self._rows: list[dict[str, Any]] = []
        self._due: tuple[Loop, Outcome] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far, of which the last may have to be waited for."""
        self._complete()
        return self._rows

    @rows.setter
    def rows(self, rows: list[dict[str, Any]]) -> None:
        self._rows, self._due = rows, None

    def _complete(self) -> None:
        """Fill in what the device had still to tell of the last row, and tell if it was skipped."""
        if self._due is None:
            return
        (loop, outcome), self._due = self._due, None
        loss, norm = outcome.read()
        fault = outcome.fault
        self._rows[-1] |= {"loss": loss, "grad_norm": norm, "skipped": int(fault is not None)}
        if fault is not None:
            self.observer.skipped(loop, outcome.step + 1, fault)

    def before_training_exp(self, strategy: Loop, **kwargs: Any) -> None:
        """Tell that a task begins."""
        self.observer.learning(strategy)

    def before_training_iteration(self, strategy: Loop, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def after_training_iteration(self, strategy: Loop, **kwargs: Any) -> None:
        """Keep a row and tell of the step."""
        assert strategy.outcome is not None
        self.rows.append(
            {
                "task": strategy.plan.task.name,
                "stage": strategy.stage.name,
                "epoch": strategy.epoch,
                "step": strategy.step,
                "global_step": strategy.global_step,
                "lr": strategy.lr,
                "loss": math.nan,
                "grad_norm": math.nan,
                "skipped": 0,
                "supervised": strategy.step_supervised,
                "tokens": strategy.step_tokens,
                "positions": strategy.step_positions,
                "seconds": time.perf_counter() - self._began,
                **strategy.figures,
            }
        )
        self._due = strategy, strategy.outcome
        if strategy.outcome.heard:
            self._complete()
        self.observer.stepped(strategy)

    def after_training_exp(self, strategy: Loop, **kwargs: Any) -> None:
        """Tell that a task is learned."""
        self._complete()
        self.observer.learned(strategy)
