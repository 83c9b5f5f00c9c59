"""What a loop needs to go on where it was, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from cl_mofo.randomness import random_state, set_random_state

if TYPE_CHECKING:
    from cl_mofo.loop import Loop


@dataclass(frozen=True)
class Position:
    """How far a loop has come.

    Args:
        experience: the task under way, from 0.
        epoch: epochs finished in this task.
        batch: steps taken in this epoch.
        step: steps taken in this task.
        global_step: steps taken in all.
    """

    experience: int
    epoch: int
    batch: int
    step: int
    global_step: int

    @classmethod
    def of(cls, loop: Loop) -> Position:
        """Return where a loop is."""
        experience = loop.plans.index(loop.plan)
        return cls(experience, loop.epoch, loop.batch, loop.step, loop.global_step)

    def set(self, loop: Loop) -> None:
        """Put a loop there, whose experience has just been set up.

        Raises:
            ValueError: the experience is another one.
        """
        given = loop.experience.current_experience
        if given != self.experience:
            raise ValueError(f"the state is of experience {self.experience}, not of {given}")
        loop.epoch, loop.batch, loop.step = self.epoch, self.batch, self.step
        loop.global_step = self.global_step


def loop_state(loop: Loop) -> dict[str, Any]:
    """Return a loop's state: tensors, and values that JSON can hold."""
    return {
        "position": asdict(Position.of(loop)),
        "model": {name: parameter.detach() for name, parameter in loop.trainable.items()},
        "optimizer": loop.optimizer.state_dict(),
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
    if differ := loop.trainable.keys() ^ state["model"].keys():
        raise ValueError(f"the state trains other parameters: {', '.join(sorted(differ)[:3])}")
    for name, parameter in loop.trainable.items():
        shape = state["model"][name].shape
        if shape != parameter.shape:  # copying would broadcast
            raise ValueError(
                f"the state's {name} is {list(shape)}, the model's {list(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in loop.trainable.items():
            parameter.copy_(state["model"][name])
    loop.optimizer.load_state_dict(dict(state["optimizer"]))
    for strategy in loop.strategies:
        strategy.load_state_dict(state["strategies"][strategy.name])
    set_random_state(state["random"])
    loop.resumed = Position(**state["position"])
    loop.global_step = loop.resumed.global_step
