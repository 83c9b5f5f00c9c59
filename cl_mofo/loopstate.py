"""What a loop needs to go on where it was, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cl_mofo.files import DamagedError
from cl_mofo.memory import shortage
from cl_mofo.randomness import random_state, set_random_state

if TYPE_CHECKING:
    from cl_mofo.loop import Loop


@dataclass(frozen=True)
class Position:
    """How far a loop has come.

    Args:
        experience: the task under way, or the next one, from 0.
        begun: whether it is under way.
        epoch: epochs finished in this task.
        batch: steps taken in this epoch.
        step: steps taken in this task.
        global_step: steps taken in all.
        skipped: those of them that were skipped, as their loss or gradient was not finite.
        skipped_in_task: the same, of this task.
    """

    experience: int
    begun: bool
    epoch: int
    batch: int
    step: int
    global_step: int
    skipped: int
    skipped_in_task: int

    def __post_init__(self) -> None:
        numbers = [value for name, value in asdict(self).items() if name != "begun"]
        if type(self.begun) is not bool or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{self} is no position")

    @classmethod
    def of(cls, loop: Loop) -> Position:
        """Return where a loop is."""
        within = (loop.epoch, loop.batch, loop.step) if loop.begun else (0, 0, 0)
        in_task = loop.skipped_in_task if loop.begun else 0
        return cls(loop.task_index, loop.begun, *within, loop.global_step, loop.skipped, in_task)

    def restore(self, loop: Loop) -> None:
        """Put a loop there.

        Raises:
            ValueError: the experience that it has been given is another one.
        """
        if loop.task_index != self.experience:
            raise ValueError(
                f"the state goes on with experience {self.experience}, not {loop.task_index}"
            )
        loop.begun, loop.global_step = self.begun, self.global_step
        loop.epoch, loop.batch, loop.step = self.epoch, self.batch, self.step
        loop.skipped, loop.skipped_in_task = self.skipped, self.skipped_in_task


def loop_state(loop: Loop) -> dict[str, Any]:
    """Return a loop's state: tensors, and values that JSON can hold.

    Tensors are the loop's own: save them before the next step.
    """
    ranks = loop.engine.ranks
    return {
        "ranks": [ranks.rank, ranks.count],
        "position": asdict(Position.of(loop)),
        **loop.engine.state_dict(),
        "strategies": {strategy.name: strategy.state_dict() for strategy in loop.strategies},
        "random": random_state(),
    }


def set_loop_state(loop: Loop, state: Mapping[str, Any]) -> None:
    """Set back what `loop_state` returned.

    Raises:
        ValueError: the state is another recipe's: other strategies, or other parameters.
    """
    ours = [strategy.name for strategy in loop.strategies]
    if sorted(ours) != sorted(state["strategies"]):
        raise ValueError(
            f"the state is of strategies {'+'.join(state['strategies'])}, not {'+'.join(ours)}"
        )
    loop.engine.load_state_dict(state)
    for strategy in loop.strategies:
        saved = _on(strategy.home(loop.device), state["strategies"][strategy.name])
        strategy.load_state_dict(saved)
    ranks = loop.engine.ranks
    if state["ranks"] == [ranks.rank, ranks.count]:
        set_random_state(state["random"])
    else:  # no rank's draws may be another's, nor those that it has had before
        numbers = [loop.recipe.seed, state["position"]["global_step"], ranks.rank, ranks.count]
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
    loop.resumed = Position(**state["position"])
    loop.task_index = loop.resumed.experience
    loop.resumed.restore(loop)


def taken_back(loop: Loop, state: Mapping[str, Any]) -> None:
    """Set back a state that was read from a file: its checksum is good, but need it fit?

    Raises:
        DamagedError: it does not fit.
    """
    try:
        set_loop_state(loop, state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as e:
        if shortage(e) is not None:
            raise
        raise DamagedError(f"its state does not fit this run: {e}") from e


def _on(device: torch.device, value: Any) -> Any:
    """Return a nesting of mappings and lists with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _on(device, below) for key, below in value.items()}
    return [_on(device, below) for below in value] if isinstance(value, list) else value
