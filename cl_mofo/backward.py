"""Forward and backward passes: of a step's global batch, and beside it for strategies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from cl_mofo.attention import within_documents
from cl_mofo.data.batches import MicroBatch, unsupervised
from cl_mofo.memory import explained
from cl_mofo.model import without_dropout

if TYPE_CHECKING:
    from cl_mofo.loop import Loop


def accumulate(loop: Loop, batch: Sequence[MicroBatch], **kwargs: Any) -> None:
    """Leave a global batch's gradient in the model, and its counts and loss in the loop."""
    loop.engine.discard_gradients()
    loop.step_supervised = sum(micro.supervised for micro in batch)
    loop.step_tokens = sum(micro.tokens for micro in batch)
    loop.step_positions = sum(micro.input_ids.numel() for micro in batch)
    loss_here = torch.zeros((), device=loop.device)
    with _explained(loop, batch), _recomputing(loop):
        for micro in _share(loop, batch):
            loop.mbatch = _avalanche_batch(loop, micro)
            loop._before_forward(**kwargs)
            loop.mb_output, loss = loop.loss_on(micro)
            loop._after_forward(**kwargs)
            loop.loss = loss / _divisor(loop, micro, len(batch))
            loss_here += loop.loss.detach()
            if micro.supervised:
                for strategy in loop.acting:
                    loop.loss = strategy.on_loss(loop, micro, loop.loss)
            loop._before_backward(**kwargs)
            loop.backward()
            loop._after_backward(**kwargs)
    loop.step_loss = loop.engine.ranks.total(loss_here)


def _explained(loop: Loop, batch: Sequence[MicroBatch]) -> AbstractContextManager[None]:
    """Return the context in which a lack of memory is explained by a batch's micro-batches."""
    largest = max(batch, key=lambda micro: micro.input_ids.numel())
    longest = max(micro.longest for micro in batch)
    met = math.ceil(largest.input_ids.numel() / longest)
    doing = (
        f"a forward and backward pass was made over {largest.examples} examples of up to {longest} "
        f"tokens (task {loop.plan.task.name}, step {loop.step + 1} of {loop.total_steps})"
    )
    budget = min(longest, loop.plan.prompt_tokens)
    return explained(doing, lambda missing: loop.remedies.computing(missing, met, budget))


def _recomputing(loop: Loop) -> AbstractContextManager[None]:
    """Return the context of backward passes, which may run parts of the forward pass again."""
    return within_documents(loop.model) if loop.way.packed else nullcontext()


def _share(loop: Loop, batch: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
    """Yield this rank's micro-batches, as many as every other's: passes are collective calls."""
    ranks, engine = loop.engine.ranks, loop.engine
    own = batch[ranks.rank :: ranks.count]
    passes = math.ceil(len(batch) / ranks.count)
    for number in range(passes):
        engine.micro_batch(last=number == passes - 1)
        micro = own[number] if number < len(own) else unsupervised(batch[0])
        yield micro.to(loop.device)


def _avalanche_batch(loop: Loop, micro: MicroBatch) -> list[torch.Tensor]:
    task = torch.full((len(micro.input_ids),), loop.task_index)
    return [micro.input_ids, micro.labels, task]


def _divisor(loop: Loop, micro: MicroBatch, micro_batches_in_step: int) -> int:
    if loop.recipe.training.loss == "micro_batches":
        return max(1, micro.supervised) * micro_batches_in_step
    return max(1, loop.step_supervised)


def replace_gradients(loop: Loop, batch: Sequence[MicroBatch]) -> torch.Tensor:
    """Leave in the model the gradient of a batch's mean loss per supervised token, no dropout.

    Returns:
        the loss [], in nats.
    """
    loop.engine.discard_gradients()
    supervised = max(1, sum(micro.supervised for micro in batch))
    total = torch.zeros((), device=loop.device)
    with without_dropout(loop.model), _explained(loop, batch), _recomputing(loop):
        for micro in _share(loop, batch):
            loss = loop.loss_on(micro)[1] / supervised
            loop.engine.backward(loss)
            total += loss.detach()
    return loop.engine.ranks.total(total)
