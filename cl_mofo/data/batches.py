"""The order of examples, the batches of a step, and the tensors of a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cl_mofo.data.tokenise import Example

IGNORED = -100
MEGABATCH = 50
"""Batches among which `group_by_length` sorts; more makes batches more alike, and less random."""


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one forward pass, padded on the right.

    Args:
        input_ids: [examples, length] token ids.
        attention_mask: [examples, length], 0 on padding.
        labels: [examples, length], the id to learn, `IGNORED` on prompts and padding. A label
            stands at its own token's position; the model predicts it one position earlier.
        tokens: how many ids are no padding.
        supervised: how many labels are learned.
        first: the first position at which any example has a supervised label.
        padding_free: whether all examples are of one length.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    tokens: int
    supervised: int
    first: int
    padding_free: bool

    def to(self, device: torch.device) -> MicroBatch:
        """Return the batch on a device."""
        return MicroBatch(
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.tokens,
            self.supervised,
            self.first,
            self.padding_free,
        )


def collate(examples: Sequence[Example], pad: int) -> MicroBatch:
    """Pad examples on the right to the longest of them.

    Args:
        examples: at least one.
        pad: the id that fills; it is never attended to or learned, so it may equal any token's.
    """
    width = max(len(example) for example in examples)
    shape = (len(examples), width)
    ids = np.full(shape, pad, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        end = len(example)
        ids[row, :end] = example.ids
        mask[row, :end] = 1
        labels[row, end - example.supervised : end] = example.ids[end - example.supervised :]
    # The first token of a sequence has no position before it to be predicted from.
    labels[:, 0] = IGNORED
    supervised = labels != IGNORED
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(labels),
        tokens=int(mask.sum()),
        supervised=int(supervised.sum()),
        first=int(supervised.any(axis=0).argmax()) if supervised.any() else width,
        padding_free=bool(mask.all()),
    )


def unsupervised(batch: MicroBatch) -> MicroBatch:
    """Return the least that a model can be run on: two tokens of a batch, nothing to learn."""
    ids = batch.input_ids[:1, :2]
    return MicroBatch(
        ids,
        torch.ones_like(ids),
        torch.full_like(ids, IGNORED),
        tokens=0,
        supervised=0,
        first=1,
        padding_free=True,
    )


def epoch_order(
    lengths: Sequence[int], batch_size: int, seed: Sequence[int], *, group_by_length: bool = False
) -> list[list[int]]:
    """Draw one epoch's batches: every index once, the last batch perhaps shorter.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch.
        seed: non-negative integers that determine the draw (run seed, task, epoch, ...).
        group_by_length: sort by length within `MEGABATCH` batches, then shuffle the batches.
    """
    generator = np.random.default_rng(np.random.SeedSequence(list(seed)))
    order = generator.permutation(len(lengths)).tolist()
    if not group_by_length:
        return _chunks(order, batch_size)
    batches: list[list[int]] = []
    for group in _chunks(order, batch_size * MEGABATCH):
        batches += _chunks(sorted(group, key=lambda i: -lengths[i]), batch_size)
    return [batches[i] for i in generator.permutation(len(batches))]


def micro_batches(
    examples: Sequence[Example], size: int, pad: int, *, sort: bool = True
) -> list[MicroBatch]:
    """Split a step's examples into forward passes.

    Args:
        examples: those of the step, in the order drawn.
        size: most examples in a forward pass.
        pad: the id that fills.
        sort: put similar lengths together, which pads less. Not where the loss is a mean over
            micro-batches: there, which examples meet in one decides their weight.
    """
    ordered = sorted(examples, key=lambda e: -len(e)) if sort else examples
    return [collate(part, pad) for part in _chunks(ordered, size)]


def sorted_chunks(lengths: Iterable[int], size: int) -> list[NDArray[np.int64]]:
    """Return indices in groups of similar lengths, the longest first (memory faults come early)."""
    order = np.argsort(-np.fromiter(lengths, dtype=np.int64), kind="stable")
    return [order[i : i + size] for i in range(0, len(order), size)]


T = TypeVar("T")


def _chunks(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
