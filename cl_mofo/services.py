"""What a loop does for the strategies that act in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cl_mofo.config import Recipe
from cl_mofo.data.batches import MicroBatch
from cl_mofo.data.division import Way, micro_batches
from cl_mofo.data.encoded import encode_records
from cl_mofo.data.plan import TaskPlan, encoder_for
from cl_mofo.data.records import Record
from cl_mofo.data.tokenise import Example
from cl_mofo.engine import Engine
from cl_mofo.model import LanguageModel, summed_loss, supervised_logits
from cl_mofo.strategy import Strategy


class Services:
    """The part of `cl_mofo.loop.Loop` that hooks call; the loop's docstring says what they read."""

    model: Any
    language_model: LanguageModel
    recipe: Recipe
    plans: tuple[TaskPlan, ...]
    plan: TaskPlan
    strategies: tuple[Strategy, ...]
    engine: Engine
    sizes: Mapping[str, int]
    task_index: int
    pad: int
    way: Way
    frozen: frozenset[str] = frozenset()

    def _owner(self, phase: str) -> Strategy:
        return next((s for s in self.strategies if phase in s.phases), Strategy())

    def weights(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return a whole model's weights under their names in its checkpoint, adapters merged."""
        return self._owner("model").weights(module)

    def encoded(self, records: Sequence[Record], plan: TaskPlan | None = None) -> list[Example]:
        """Encode records within a task's budgets; without one, of the task with the largest."""
        plan = plan or max(self.plans, key=lambda p: p.prompt_tokens + p.answer_tokens)
        encoder = encoder_for(self.language_model.tokenizer, plan, self.recipe)
        return list(encode_records(encoder, records))

    def micro_batches(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """Split examples into forward passes, of which every rank gets its share."""
        training = self.recipe.training
        return micro_batches(
            examples,
            training.micro_batch_size,
            self.pad,
            way=self.way,
            ranks=self.engine.ranks.count,
            together=training.loss == "micro_batches",
        )

    def loss_on(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a micro-batch's logits and its loss summed over supervised tokens.

        On several ranks all call it at once, each with a micro-batch.
        """
        with self.language_model.autocast():
            logits, labels = supervised_logits(self.model, micro, self.engine.forward)
        return logits, summed_loss(logits, labels)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Return the trained weights by name: whole, or where ranks share them this one's part."""
        return self.engine.parameters()

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients by name, of what this step moves, of the shapes of `parameters`.

        They may be changed in place.
        """
        return self.engine.gradients()

    def over_shards(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all parts of the parameters of what was summed over those here."""
        return self.engine.over_shards(tensor)

    def freeze(self, names: Iterable[str]) -> None:
        """Take parameters out of the step under way: no gradient, no update, no new moments."""
        self.frozen |= frozenset(names)
        self.engine.freeze(self.frozen)

    @contextmanager
    def nothing_frozen(self) -> Iterator[None]:
        """Let gradients of frozen parameters be computed too, for a while."""
        self.engine.freeze(frozenset())
        try:
            yield
        finally:
            self.engine.freeze(self.frozen)

    @contextmanager
    def freezing(self) -> Iterator[None]:
        """Whatever becomes of a step, what it froze is trainable after it."""
        try:
            yield
        finally:
            self.frozen = frozenset()
            self.engine.freeze(self.frozen)

    def generator(self, purpose: str, *numbers: int) -> np.random.Generator:
        """Return a generator that run seed, task, purpose and numbers determine, and nothing else.

        Args:
            purpose: what is drawn, so that no two draws are alike by accident.
            numbers: what else a draw belongs to, such as the step; at least 0.
        """
        seed = [self.recipe.seed, self.task_index, *numbers, *purpose.encode()]
        return np.random.default_rng(np.random.SeedSequence(seed))
