"""When checkpoints are written: an Avalanche plugin that looks after every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cl_mofo.compat import repair_torchvision
from cl_mofo.config import CheckpointConfig
from cl_mofo.stopping import Stop, stopped

if TYPE_CHECKING:
    from cl_mofo.loop import Loop

repair_torchvision()

from avalanche.core import SupervisedPlugin  # noqa: E402


class Saving(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Save after a step if enough time or steps have passed, or before leaving on a signal.

    Args:
        config: how often.
        stop: whether to leave.
        save: writes a checkpoint, and returns what to say of it where it leaves.
    """

    def __init__(self, config: CheckpointConfig, stop: Stop, save: Callable[[], str]) -> None:
        super().__init__()
        self.config, self.stop, self._save = config, stop, save
        self._last = time.monotonic()
        self._told = ""

    def save(self) -> str:
        """Save now, on all ranks; the next is due a whole interval later."""
        self._told = self._save()
        self._last = time.monotonic()
        return self._told

    def after_training_iteration(self, strategy: Loop, **kwargs: Any) -> None:
        """Save if it is due; leave if that was asked for.

        Raises:
            StoppedError: a signal has asked for it.
            KeyboardInterrupt: the user has.
        """
        ranks = strategy.engine.ranks
        # A clock or a signal of one rank counts for all.
        asked, due = ranks.largest([self.stop.signal, int(ranks.first and self._due(strategy))])
        if not asked and not due:
            return
        told = self.save()
        if asked:
            where = f"after step {strategy.step} of {strategy.total_steps}"
            raise stopped(asked, f"{where} on {strategy.plan.task.name}; {told}")

    def leave_if_asked(self, loop: Loop) -> None:
        """Leave after a task's last step, while nothing has changed since the last checkpoint.

        Raises:
            StoppedError: a signal has asked for it.
            KeyboardInterrupt: the user has.
        """
        (asked,) = loop.engine.ranks.largest([self.stop.signal])
        if asked:
            where = f"after the last step on {loop.plan.task.name}, before its end"
            raise stopped(asked, f"{where}; {self._told}")

    def _due(self, strategy: Loop) -> bool:
        minutes, steps = self.config.every_minutes, self.config.every_steps
        if steps is not None and strategy.global_step % steps == 0:
            return True
        return minutes is not None and time.monotonic() - self._last >= 60 * minutes
