"""The loop every strategy shares, on Avalanche's template.

This is the whole of it, with every place a strategy may act and the Avalanche callbacks around::

    strategy.adapt_model(language_model)
    optimizer = strategy.make_optimizer(...)
    for experience in stream:                          # a task; [before|after]_training_exp
        stages = strategy.stages(loop, [the task's rows])
        strategy.before_experience(loop)
        for epoch in stages:                           # [before|after]_training_epoch
            for batch in epoch:                        # [before|after]_training_iteration
                strategy.before_step(loop)
                for micro_batch in batch:
                    loss = forward(micro_batch)        # [before|after]_forward
                    loss = strategy.on_loss(loop, micro_batch, loss)
                    loss.backward()                    # [before|after]_backward
                strategy.on_gradients(loop)
                clip; optimizer.step()                 # [before|after]_update
                strategy.after_step(loop)
        strategy.after_experience(loop)
        strategy.before_evaluation(loop); score; strategy.after_evaluation(loop)

One training iteration is one optimizer step on a global batch. Avalanche plugins that only look
(loggers, loss metrics, whatever calls `stop_training`) work in it; after an iteration `loss` is the
whole step's. Plugins that read class labels, change batches or call `eval` do not: answers are
scored by `cl_mofo.evaluation`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from cl_mofo.compat import repair_torchvision
from cl_mofo.config import Recipe
from cl_mofo.data.batches import MicroBatch, micro_batches
from cl_mofo.data.plan import TaskPlan
from cl_mofo.data.records import Record
from cl_mofo.data.stages import Stage, stage_of
from cl_mofo.data.tokenise import Encoder, Example
from cl_mofo.model import LanguageModel, summed_loss, supervised_logits, without_dropout
from cl_mofo.resume import Position, loop_state, set_loop_state
from cl_mofo.strategy import Strategy
from cl_mofo.update import refuse_broken_weights, update

repair_torchvision()

from avalanche.training.plugins import EvaluationPlugin  # noqa: E402
from avalanche.training.templates import SupervisedTemplate  # noqa: E402


def encoder_for(language_model: LanguageModel, plan: TaskPlan, recipe: Recipe) -> Encoder:
    """Return the encoder of a task's records under a recipe."""
    return Encoder(
        language_model.tokenizer,
        plan.prompt_tokens,
        plan.answer_tokens,
        joint=recipe.training.tokenisation == "joint",
    )


def _no_metrics() -> Any:
    """Return Avalanche's evaluation plugin without loggers, and without its warning about that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin()


class Loop(SupervisedTemplate):
    """Train a causal language model on one experience after another.

    Args:
        language_model: the model; it is trained in place.
        plans: the tasks; experience i of a benchmark is `plans[i]`.
        recipe: batch, schedule, seed and the rest.
        strategies: in their order of acting (`cl_mofo.strategy.compose`).
        auxiliary: rows of no task, for replay.
        plugins: Avalanche plugins.
        evaluator: an Avalanche `EvaluationPlugin`, with loss metrics and loggers; none by default.

    What hooks may read and change: `model`, `trainable` (its trained parameters by name),
    `optimizer`, `plan`, `examples` (the task's encoded training split), `stage`, `epoch`, `step`
    and `total_steps` (of this task), `global_step`, `lr`, the gradients in `model`, `figures` (of
    this step, for the record), and after a step `step_loss` (mean per supervised token),
    `grad_norm` (before clipping), `step_supervised` (tokens learned), `step_tokens` (all that are
    no padding) and `step_positions` (computed, padding included).

    `state_dict` and `load_state_dict` hold all a run needs to go on between any two steps; the next
    `train` must then get the experience that was under way.
    """

    def __init__(
        self,
        *,
        language_model: LanguageModel,
        plans: Sequence[TaskPlan],
        recipe: Recipe,
        strategies: Sequence[Strategy],
        auxiliary: Sequence[Record] = (),
        plugins: Sequence[Any] = (),
        evaluator: Any = None,
    ) -> None:
        self.language_model = language_model
        self.plans = tuple(plans)
        self.recipe = recipe
        self.strategies = tuple(strategies)
        self.auxiliary = tuple(auxiliary)
        self.plan = self.plans[0]
        self.pad = language_model.tokenizer.eos_token_id
        self.examples: list[Example] = []
        self.stages: list[Stage] = []
        self.epoch = self.batch = self.step = self.total_steps = self.global_step = 0
        self.resumed: Position | None = None
        self.lr = self.grad_norm = 0.0
        self.figures: dict[str, float] = {}
        self.step_loss = torch.zeros(())
        self.step_supervised = self.step_tokens = self.step_positions = 0
        self.micro_batch: MicroBatch | None = None
        for strategy in self.strategies:
            strategy.adapt_model(language_model)
        self.trainable = {
            name: parameter
            for name, parameter in language_model.module.named_parameters()
            if parameter.requires_grad
        }
        super().__init__(
            model=language_model.module,
            optimizer=self._fresh_optimizer(),
            train_mb_size=recipe.optimizer.batch_size,
            device=language_model.device,
            plugins=list(plugins),
            evaluator=evaluator or _no_metrics(),
        )

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        owner = self._owner("optimizer")
        return owner.make_optimizer(list(self.trainable.items()), self.recipe.optimizer)

    def _owner(self, phase: str) -> Strategy:
        return next((s for s in self.strategies if phase in s.phases), Strategy())

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the model's weights under their names in its checkpoint, adapters merged."""
        return self._owner("model").weights(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on from here, between two steps."""
        return loop_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned, in a loop made from the same recipe.

        Raises:
            ValueError: the state is another recipe's: other strategies, or other parameters.
        """
        set_loop_state(self, state)

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Learn experiences one after another, as Avalanche's `train` does.

        Whatever stops a step, strategies first undo what they did to the model for it.
        """
        try:
            return super().train(experiences, eval_streams, **kwargs)
        except BaseException:
            for strategy in reversed(self.strategies):
                strategy.on_failure(self)
            raise

    # Experience: data, optimizer and counters.

    def encoded(self, records: Sequence[Record], plan: TaskPlan | None = None) -> list[Example]:
        """Encode records within a task's budgets, or within the largest of all tasks'."""
        plan = plan or dataclasses.replace(
            self.plan,
            prompt_tokens=max(p.prompt_tokens for p in self.plans),
            answer_tokens=max(p.answer_tokens for p in self.plans),
        )
        encoder = encoder_for(self.language_model, plan, self.recipe)
        return [encoder.encode(record["prompt"], record["answer"]) for record in records]

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Encode the experience's records; `batches` draws them anew each epoch."""
        self.plan = self.plans[self.experience.current_experience]
        rows = self.adapted_dataset
        self.examples = self.encoded([rows[i] for i in range(len(rows))], self.plan)
        self.stages = [Stage("task", self.examples, self.plan.epochs)]
        for strategy in self.strategies:
            self.stages = strategy.stages(self, self.stages)
        size = self.recipe.optimizer.batch_size
        self.total_steps = sum(stage.steps(size) for stage in self.stages)
        self.epoch = self.batch = self.step = 0
        if self.resumed is not None:
            self.resumed.set(self)
        self.train_epochs = sum(stage.epochs for stage in self.stages) - self.epoch

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Keep the optimizer across tasks, or start each task with a fresh one (`reset`)."""
        if self.recipe.optimizer.reset and self.global_step > 0 and self.resumed is None:
            self.optimizer = self._fresh_optimizer()

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        if self.resumed is not None:
            self.resumed = None
            return
        for strategy in self.strategies:
            strategy.before_experience(self)

    def _after_training_exp(self, **kwargs: Any) -> None:
        refuse_broken_weights(self)
        for strategy in self.strategies:
            strategy.after_experience(self)
        super()._after_training_exp(**kwargs)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let strategies prepare the model for answering, and undo it."""
        for strategy in self.strategies:
            strategy.before_evaluation(self)
        try:
            yield
        finally:
            for strategy in reversed(self.strategies):
                strategy.after_evaluation(self)

    @property
    def stage(self) -> Stage:
        """The stage that the present epoch belongs to."""
        return stage_of(self.stages, self.epoch)

    def drawn(self, epoch: int) -> list[list[Example]]:
        """Return the batches that an epoch of this task takes, the same at each call."""
        return stage_of(self.stages, epoch).batches(
            self.recipe.optimizer.batch_size,
            (self.recipe.seed, self.experience.current_experience, epoch),
            group_by_length=self.recipe.training.group_by_length,
        )

    def batches(self) -> Iterator[list[MicroBatch]]:
        """Yield this epoch's steps from `batch` on, each as micro-batches."""
        for examples in self.drawn(self.epoch)[self.batch :]:
            yield self.micro_batches(examples)

    def micro_batches(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """Split examples into forward passes."""
        return micro_batches(
            examples,
            self.recipe.training.micro_batch_size,
            self.pad,
            sort=self.recipe.training.loss == "tokens",
        )

    # One epoch of steps.

    def training_epoch(self, **kwargs: Any) -> None:
        """Step through one epoch."""
        for batch in self.batches():
            if self._stop_training:
                break
            self.figures = {}
            self._before_training_iteration(**kwargs)
            for strategy in self.strategies:
                strategy.before_step(self)
            self._accumulate(batch, **kwargs)
            for strategy in self.strategies:
                strategy.on_gradients(self)
            self._before_update(**kwargs)
            update(self)
            self._after_update(**kwargs)
            for strategy in self.strategies:
                strategy.after_step(self)
            self.batch += 1
            self.step += 1
            self.global_step += 1
            self.loss = self.step_loss  # what Avalanche's loss metrics read
            self._after_training_iteration(**kwargs)
        self.epoch += 1
        self.batch = 0

    def _accumulate(self, batch: Sequence[MicroBatch], **kwargs: Any) -> None:
        self.optimizer.zero_grad()
        self.step_supervised = sum(micro.supervised for micro in batch)
        self.step_tokens = sum(micro.tokens for micro in batch)
        self.step_positions = sum(micro.input_ids.numel() for micro in batch)
        self.step_loss = torch.zeros((), device=self.device)
        for micro in batch:
            self.micro_batch = micro.to(self.device)
            self.mbatch = self._avalanche_batch(self.micro_batch)
            self._before_forward(**kwargs)
            self.mb_output, loss = self.loss_on(self.micro_batch)
            self._after_forward(**kwargs)
            self.loss = loss / self._divisor(micro, len(batch))
            self.step_loss += self.loss.detach()
            for strategy in self.strategies:
                self.loss = strategy.on_loss(self, self.micro_batch, self.loss)
            self._before_backward(**kwargs)
            self.backward()
            self._after_backward(**kwargs)

    def _avalanche_batch(self, micro: MicroBatch) -> list[torch.Tensor]:
        task = torch.full((len(micro.input_ids),), self.experience.current_experience)
        return [micro.input_ids, micro.labels, task]

    def _divisor(self, micro: MicroBatch, micro_batches_in_step: int) -> int:
        if self.recipe.training.loss == "micro_batches":
            return max(1, micro.supervised) * micro_batches_in_step
        return max(1, self.step_supervised)

    def gradient(self, batch: Sequence[MicroBatch]) -> float:
        """Put the gradient of a batch's mean loss per supervised token where a step's would be.

        For measuring between steps, without dropout: earlier gradients are dropped.

        Returns:
            the loss, in nats.
        """
        self.optimizer.zero_grad()
        supervised = max(1, sum(micro.supervised for micro in batch))
        total = torch.zeros((), device=self.device)
        with without_dropout(self.model):
            for micro in batch:
                loss = self.loss_on(micro.to(self.device))[1] / supervised
                torch.autograd.backward(loss)
                total += loss.detach()
        return total.item()

    def loss_on(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a micro-batch's logits and its loss summed over supervised tokens."""
        with self.language_model.autocast():
            logits, labels = supervised_logits(self.model, micro)
        return logits, summed_loss(logits, labels)
