"""The loop every strategy shares, on Avalanche's template.

This is the whole of it, with every place a strategy may act and the Avalanche callbacks around::

    strategy.check_recipe(recipe); strategy.check_model(language_model)
    strategy.adapt_model(language_model)
    engine.prepare(...): optimizer = strategy.make_optimizer(...)
    for experience in stream:                          # a task; [before|after]_training_exp
        stages = strategy.stages(loop, [the task's rows])
        strategy.before_experience(loop)
        for epoch in stages:                           # [before|after]_training_epoch
            for batch in epoch:                        # [before|after]_training_iteration
                strategy.before_step(loop)
                for micro_batch in batch:
                    loss = forward(micro_batch)        # [before|after]_forward
                    loss = strategy.on_loss(loop, micro_batch, loss)
                    engine.backward(loss)              # [before|after]_backward
                if loss and gradient are finite:       # otherwise the step is skipped
                    strategy.on_gradients(loop)
                    clip; engine.step()                # [before|after]_update
                    strategy.after_step(loop)
        strategy.after_experience(loop)
        strategy.record(); strategy.weights(module)    # for the run's folder, and its distance
        with strategy.evaluating(module): score
    strategy.export(loop, module, folder)

One training iteration is one optimizer step on a global batch. Avalanche plugins that only look
(loggers, loss metrics, whatever calls `stop_training`) work in it; after an iteration `loss` is the
whole step's. Plugins that read class labels, change batches or call `eval` do not: answers are
scored by `cl_mofo.evaluation`.

On several ranks all run the same loop, each on its share of a batch's micro-batches; what they hold
of the model is the engine's affair (`cl_mofo/engine/base.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from cl_mofo.backward import accumulate, replace_gradients
from cl_mofo.compat import repair_torchvision
from cl_mofo.config import Recipe
from cl_mofo.data.batches import MicroBatch
from cl_mofo.data.plan import TaskPlan
from cl_mofo.data.records import Record
from cl_mofo.data.stages import Stage, stage_of
from cl_mofo.data.tokenise import Example
from cl_mofo.engine import Engine, SingleEngine, check_engine
from cl_mofo.loopstate import Position, loop_state, set_loop_state
from cl_mofo.memory import explained
from cl_mofo.model import LanguageModel
from cl_mofo.probe import way_of
from cl_mofo.remedies import Remedies
from cl_mofo.services import Services
from cl_mofo.strategy import STEP_PHASES, Strategy, in_order
from cl_mofo.update import Outcome, refuse_broken_weights, settle, update, waits

repair_torchvision()

from avalanche.training.plugins import EvaluationPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


def _no_metrics() -> Any:
    """Return Avalanche's evaluation plugin without loggers, and without its warning about that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin()


class Saver(Protocol):
    """What keeps a loop's state."""

    def save(self) -> object:
        """Save now, on all ranks."""

    def leave_if_asked(self, loop: Loop) -> None:
        """Leave, on all ranks, if one was asked to; nothing has changed since the last save."""


class Loop(Services, SupervisedTemplate):
    """Train a causal language model on one experience after another.

    Args:
        language_model: the model; it is trained in place.
        plans: the tasks; experience i of a benchmark is `plans[i]`.
        recipe: batch, schedule, seed and the rest.
        strategies: in their order of acting (`cl_mofo.strategy.compose`).
        auxiliary: rows of no task, for strategies that learn them.
        engine: what computes; one device by default.
        plugins: Avalanche plugins.
        evaluator: an Avalanche `EvaluationPlugin`, with loss metrics and loggers; none by default.

    What hooks may read and change: `model`, `sizes` (entries of each trained parameter, by name),
    `parameters()`, `gradients()` and `over_shards` (see `Services`), `optimizer`, `plan`,
    `task_index`, `examples` (the task's encoded training split), `stage`, `epoch`, `step` and
    `total_steps` (of this task), `global_step`, `lr`, `figures` (of this step, for the record), and
    after a step `fault` (what was not finite, if it was skipped), `skipped` and `skipped_in_task`
    (how many were), `step_loss` (as `training.loss` averages it), `grad_norm` (before clipping),
    `step_supervised` (tokens learned), `step_tokens` (all that are no padding) and
    `step_positions` (computed, padding included).

    `state_dict` and `load_state_dict` hold all a run needs to go on between any two steps or tasks;
    the next `train` must then get the experience that was under way, or was next. What Avalanche's
    plugins keep is not in it, nor is a request to stop.
    """

    def __init__(
        self,
        *,
        language_model: LanguageModel,
        plans: Sequence[TaskPlan],
        recipe: Recipe,
        strategies: Sequence[Strategy],
        auxiliary: Sequence[Record] = (),
        engine: Engine | None = None,
        plugins: Sequence[Any] = (),
        evaluator: Any = None,
    ) -> None:
        self.language_model = language_model
        self.plans = tuple(plans)
        self.recipe = recipe
        self.strategies = tuple(strategies)
        self.acting = in_order(self.strategies, STEP_PHASES)
        self.auxiliary = tuple(auxiliary)
        self.plan = self.plans[0]
        self.pad = language_model.tokenizer.eos_token_id
        self.examples: list[Example] = []
        self.stages: list[Stage] = []
        self.task_index = self.epoch = self.batch = self.step = 0
        self.total_steps = self.global_step = 0
        self.skipped = self.skipped_in_task = 0
        self.fault: str | None = None
        self.begun = self.finishing = False
        self.saver: Saver | None = None
        self.resumed: Position | None = None
        self.lr = self.grad_norm = self.heard_loss = 0.0
        self.outcome: Outcome | None = None
        self.figures: dict[str, float] = {}
        self.step_loss = torch.zeros(())
        self.step_supervised = self.step_tokens = self.step_positions = 0
        for strategy in self.strategies:
            strategy.adapt_model(language_model)
        self.sizes = {
            name: parameter.numel()
            for name, parameter in language_model.module.named_parameters()
            if parameter.requires_grad
        }
        self.engine = engine or SingleEngine(compiled=recipe.engine.compile)
        check_engine(self.engine, recipe, self.strategies)
        self.remedies = Remedies(
            recipe,
            on_gpu=language_model.device.type != "cpu",
            adapters=len(self.sizes) < len(list(language_model.module.parameters())),
        )
        longest = max(plan.prompt_tokens + plan.answer_tokens for plan in self.plans) + 1
        with explained("the model is prepared for training", self.remedies.holding):
            self.way = way_of(language_model, recipe, longest)
            self.engine.prepare(language_model, self._make_optimizer)
        super().__init__(
            model=self.engine.module,
            optimizer=self.engine.optimizer,
            train_mb_size=recipe.optimizer.batch_size,
            device=language_model.device,
            plugins=list(plugins),
            evaluator=evaluator or _no_metrics(),
        )
        self.deferred = self.engine.leaves_steps and not waits(self.acting)
        if self.engine.ranks.rank:  # so far all drew the same; dropout must differ
            torch.manual_seed(recipe.seed + self.engine.ranks.rank)

    def _make_optimizer(
        self, named_parameters: Sequence[tuple[str, torch.nn.Parameter]]
    ) -> torch.optim.Optimizer:
        owner = self._owner("optimizer")
        return owner.make_optimizer(named_parameters, self.recipe.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return all that this rank needs to go on from here, between two steps."""
        settle(self)
        return loop_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned, in a loop made from the same recipe.

        Raises:
            ValueError: the state is another recipe's: other strategies, or other parameters.
        """
        set_loop_state(self, state)

    # Experience: data, optimizer and counters.

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Encode the experience's records; `batches` draws them anew each epoch."""
        self.task_index = self.experience.current_experience
        self.plan = self.plans[self.task_index]
        self.begun = False
        self.epoch = self.batch = self.step = self.skipped_in_task = 0
        if self.resumed is not None:
            self.resumed.restore(self)
            self.resumed = None
        rows = self.adapted_dataset
        self.examples = self.encoded([rows[i] for i in range(len(rows))], self.plan)
        self.stages = [Stage("task", self.examples, self.plan.epochs)]
        for strategy in self.strategies:
            self.stages = strategy.stages(self, self.stages)
        size = self.recipe.optimizer.batch_size
        self.total_steps = sum(stage.steps(size) for stage in self.stages)
        self.train_epochs = sum(stage.epochs for stage in self.stages) - self.epoch

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Keep the optimizer across tasks, or start each task with a fresh one (`reset`)."""
        if self.recipe.optimizer.reset and self.global_step > 0 and not self.begun:
            self.engine.fresh_optimizer()
            self.optimizer = self.engine.optimizer

    def _before_training_exp(self, **kwargs: Any) -> None:
        self._stop_training = False  # which Avalanche keeps if it was asked for in the last step
        super()._before_training_exp(**kwargs)
        if not self.begun:
            self.begun = True
            for strategy in self.strategies:
                strategy.before_experience(self)

    def _after_training_exp(self, **kwargs: Any) -> None:
        settle(self)
        refuse_broken_weights(self)
        if self.saver and any(strategy.long_end for strategy in self.strategies):
            self.saver.save()
            self.finishing = True
        with explained("strategies act after a task", self.remedies.holding):
            for strategy in self.strategies:
                strategy.after_experience(self)
        self.finishing = self.begun = False
        self.task_index += 1
        super()._after_training_exp(**kwargs)

    @contextmanager
    def evaluating(self) -> Iterator[LanguageModel]:
        """Give the model with whole weights, prepared by the strategies for answering."""
        with ExitStack() as stack:
            with explained("whole weights are made ready to answer", self.remedies.holding):
                module = stack.enter_context(self.engine.whole())
                for strategy in self.strategies:
                    stack.enter_context(strategy.evaluating(module))
            yield replace(self.language_model, module=module)

    @property
    def stage(self) -> Stage:
        """The stage that the present epoch belongs to."""
        return stage_of(self.stages, self.epoch)

    def drawn(self, epoch: int) -> list[list[Example]]:
        """Return the batches that an epoch of this task takes, the same at each call."""
        return stage_of(self.stages, epoch).batches(
            self.recipe.optimizer.batch_size,
            (self.recipe.seed, self.task_index, epoch),
            group_by_length=self.recipe.training.group_by_length,
        )

    def batches(self) -> Iterator[list[MicroBatch]]:
        """Yield this epoch's steps from `batch` on, each as micro-batches."""
        for examples in self.drawn(self.epoch)[self.batch :]:
            yield self.micro_batches(examples)

    # One epoch of steps.

    def training_epoch(self, **kwargs: Any) -> None:
        """Step through one epoch."""
        for batch in self.batches():
            if self._stop_training:
                break
            self.figures = {}
            self._before_training_iteration(**kwargs)
            with explained("strategies act in a step", self.remedies.holding):
                with self.freezing():
                    for strategy in self.acting:
                        strategy.before_step(self)
                    accumulate(self, batch, **kwargs)
                    update(self, **kwargs)
                if self.fault is None:
                    for strategy in self.acting:
                        strategy.after_step(self)
            self.batch += 1
            self.step += 1
            self.global_step += 1
            self.loss = self.step_loss  # what Avalanche's loss metrics read
            self._after_training_iteration(**kwargs)
        self.epoch += 1
        self.batch = 0

    def backward(self) -> None:
        """Add the gradient of the present micro-batch's loss."""
        self.engine.backward(self.loss)

    def replace_gradients(self, batch: Sequence[MicroBatch]) -> torch.Tensor:
        """Replace the gradients in the model by those of a batch's mean loss per supervised token.

        For `before_step` and `after_experience`, when there is no step's gradient to lose. Without
        dropout. Ranks share the micro-batches; all call it with all of them.

        Returns:
            the loss [], in nats.
        """
        if self.saver and self.finishing:
            self.saver.leave_if_asked(self)
        return replace_gradients(self, batch)
