"""What a strategy is, when it acts, and what several of them mean together.

A strategy acts at named places of the loop (`cl_mofo.loop` shows them all). Which places it uses is
its `phases`; a combination acts phase by phase in the order below, however its name was written:

    model      adapters: which parameters are trained      one at most
    data       what is learned beside the task's own rows
    update     which parameters a step may move, drawn before its gradients
    penalty    terms added to the gradient
    projection the gradient after all penalties            one at most
    optimizer  the base optimizer, or a filter around it   one at most
    end        memories and statistics after a task

Penalties and projections thus see only the parameters that the step may move, and an optimizer that
filters by momentum sees the gradient that all others have left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cl_mofo.errors import UserError
from cl_mofo.parts import Parts as Parts
from cl_mofo.untrusted import shortened

if TYPE_CHECKING:
    import torch

    from cl_mofo.config import OptimizerConfig, Recipe
    from cl_mofo.data.batches import MicroBatch
    from cl_mofo.data.stages import Stage
    from cl_mofo.loop import Loop
    from cl_mofo.model import LanguageModel

PHASES = ("model", "data", "update", "penalty", "projection", "optimizer", "end")
STEP_PHASES = ("update", "penalty", "projection")
"""The phases of the hooks within a step, which act in their order."""
CLAIMED = {
    "adapt_model": {"model"},
    "weights": {"model"},
    "make_optimizer": {"optimizer"},
    "stages": {"data"},
    "on_gradients": {"penalty", "projection"},
}
"""Hooks that act in certain phases only, and those phases."""
EXCLUSIVE = frozenset({"model", "optimizer", "projection"})


class Strategy:
    """One way to learn the next task without forgetting the earlier ones.

    A subclass sets `name` and `phases`, declares its settings as a frozen dataclass `Config` (each
    with a default), and overrides the hooks it needs. The first line of its module's docstring is
    what `cl-mofo list strategies` shows.
    """

    name: ClassVar[str]
    phases: ClassVar[frozenset[str]] = frozenset()
    long_end: ClassVar[bool] = False
    """Whether `after_experience` may take as long as many steps: then a run is saved before it, and
    may be left in it wherever it calls `Loop.replace_gradients`."""

    @dataclass(frozen=True)
    class Config:
        """The strategy's settings."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe that the settings do not fit, before anything is loaded.

        Raises:
            UserError: naming the keys that do not go together.
        """

    def check_model(self, language_model: LanguageModel) -> None:
        """Refuse a model that the settings do not fit, before anything is written.

        Raises:
            UserError: naming the setting, what was found, and what would fit.
        """

    def adapt_model(self, language_model: LanguageModel) -> None:
        """Change the model, and say by `requires_grad` what is trained (phase `model`)."""

    def weights(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return the model's weights under their names in its checkpoint (phase `model`)."""
        return {name: parameter.detach() for name, parameter in module.named_parameters()}

    def make_optimizer(
        self, named_parameters: Sequence[tuple[str, torch.nn.Parameter]], settings: OptimizerConfig
    ) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters (phase `optimizer`): here, AdamW.

        Args:
            named_parameters: (name, parameter) pairs.
            settings: learning rate, betas, eps and decay; norms are not decayed.

        Under FSDP2 the parameters are DTensors. Under ZeRO 1 to 3 the optimizer is later given flat
        tensors that hold parts of many: one that does more than move each entry by itself needs a
        method `shard(shards)`, which hears what they hold (`cl_mofo.optim.Shards`), as MoFO has.

        A run goes on with the optimizer's `state`, by parameter. What it changes in its groups
        beside the learning rate is not kept.
        """
        import torch

        from cl_mofo.optim import authors_groups

        groups = authors_groups(named_parameters, weight_decay=settings.weight_decay)
        return torch.optim.AdamW(
            [{k: v for k, v in group.items() if k != "update_fraction"} for group in groups],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )

    def stages(self, loop: Loop, stages: list[Stage]) -> list[Stage]:
        """Return what a task's steps run over, given its own rows as one stage (phase `data`).

        Called again where a run goes on within the task: the same state gives the same stages.
        """
        return stages

    def before_experience(self, loop: Loop) -> None:
        """Act before a task's first step, with the task's data loaded."""

    def before_step(self, loop: Loop) -> None:
        """Act before the first forward pass of an optimizer step."""

    def on_loss(self, loop: Loop, micro_batch: MicroBatch, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to differentiate, given a micro-batch's share of the step's loss.

        Called once for each micro-batch, on the rank that has it.
        """
        return loss

    def on_gradients(self, loop: Loop) -> None:
        """Act on the whole global batch's gradients, once per step, before clipping.

        Figures put into `loop.figures` go to the run's `metrics.parquet`.
        """

    def after_step(self, loop: Loop) -> None:
        """Act after the optimizer's step."""

    def after_experience(self, loop: Loop) -> None:
        """Act after a task's last step, at the weights it ends with, before evaluation."""

    def evaluating(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """Return the context in which a model answers test sets, such as merged adapters.

        Args:
            module: the model with whole weights; on several ranks it may be a copy.
        """
        return nullcontext()

    def export(self, loop: Loop, module: torch.nn.Module, folder: Path) -> None:
        """Write what belongs beside the final weights into the run's folder.

        Args:
            loop: the loop.
            module: the model with whole weights.
            folder: the run's.
        """

    def record(self) -> dict[str, Any]:
        """Return what the run folder should say of the task just learned, as JSON can hold it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, and values that JSON can hold.

        What has a value for each entry of the parameters goes into `Parts`, by the parameters'
        names: on another number of ranks each gets what belongs to the entries that it has then.
        All else must be the same on every rank.
        """
        return {}

    def home(self, device: torch.device) -> torch.device:
        """Return where `load_state_dict` wants its tensors, given the model's device: there."""
        return device

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned, its tensors on the device that `home` says."""


def parse_names(text: str) -> tuple[str, ...]:
    """Split `"ewc+mofo"` into its names, in the order written.

    Raises:
        UserError: an empty or repeated name.
    """
    names = tuple(part.strip() for part in text.split("+"))
    if not all(names):
        raise UserError(
            f"strategy '{shortened(text)}': names are joined by '+', as in 'replay+mofo'"
        )
    if len(set(names)) < len(names):
        raise UserError(f"strategy '{shortened(text)}' names a strategy twice")
    return names


def compose(strategies: Iterable[Strategy]) -> tuple[Strategy, ...]:
    """Order strategies by phase and refuse two that claim the same exclusive one.

    Raises:
        UserError: two strategies claim an exclusive phase.
    """
    ordered = in_order(sorted(strategies, key=lambda s: s.name), PHASES)
    for phase in EXCLUSIVE:
        claims = [s.name for s in ordered if phase in s.phases]
        if len(claims) > 1:
            raise UserError(
                f"strategies {' and '.join(claims)} cannot be combined: each brings its own "
                f"{phase}, and a run has one. Leave one of them out"
            )
    return ordered


def in_order(strategies: Iterable[Strategy], phases: Sequence[str]) -> tuple[Strategy, ...]:
    """Order strategies by the first of some phases that each acts in; those in none come last."""

    def first(strategy: Strategy) -> int:
        return min((phases.index(p) for p in strategy.phases if p in phases), default=len(phases))

    return tuple(sorted(strategies, key=first))


def settings(strategy: type[Strategy]) -> dict[str, Any]:
    """Return a strategy's settings with their defaults, for listings and recipes."""
    return dataclasses.asdict(strategy.Config())
