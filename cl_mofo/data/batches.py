"""The order of examples, the batches of a step, and the tensors of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cl_mofo.data.tokenise import Example
from cl_mofo.transfer import to_device

IGNORED = -100
MEGABATCH = 50
"""Batches among which `group_by_length` sorts; more makes batches more alike, and less random."""


@dataclass(frozen=True)
class Documents:
    """Where the examples lie that follow one another in a single row, and see only themselves.

    Args:
        lengths: tokens of each, in the row's order.
        starts: int32 [examples + 1], where each begins, and the row's end.
        positions: [1, length], each token's place within its example.
        predicting: [labels], the places in the row whose logits predict a supervised label; one
            at least, as a model cannot be asked for none.
    """

    lengths: tuple[int, ...]
    starts: torch.Tensor
    positions: torch.Tensor
    predicting: torch.Tensor

    def to(self, device: torch.device) -> Documents:
        """Return them on a device."""
        return replace(
            self,
            starts=to_device(self.starts, device),
            positions=to_device(self.positions, device),
            predicting=to_device(self.predicting, device),
        )


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one forward pass: examples padded on the right, or packed into one row.

    Args:
        input_ids: [rows, length] token ids.
        attention_mask: [rows, length], 0 on padding; it stays on the CPU unless `masked`.
        labels: [rows, length], the id to learn, `IGNORED` on prompts and padding. A label
            stands at its own token's position; the model predicts it one position earlier.
        tokens: how many ids are no padding.
        supervised: how many labels are learned.
        first: the first position at which any row has a supervised label.
        masked: whether the model has to be told which tokens are padding.
        documents: the examples of the single row; None where each row is one.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    tokens: int
    supervised: int
    first: int
    masked: bool
    documents: Documents | None = None

    @property
    def examples(self) -> int:
        """How many examples go through the model at once."""
        return len(self.documents.lengths) if self.documents else len(self.input_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(self.documents.lengths) if self.documents else self.input_ids.shape[1]

    def to(self, device: torch.device) -> MicroBatch:
        """Return the batch on a device, without a mask that the model does not need."""
        mask = to_device(self.attention_mask, device) if self.masked else self.attention_mask
        return replace(
            self,
            input_ids=to_device(self.input_ids, device),
            attention_mask=mask,
            labels=to_device(self.labels, device),
            documents=self.documents and self.documents.to(device),
        )


def collate(examples: Sequence[Example], pad: int, *, masked: bool = True) -> MicroBatch:
    """Pad examples on the right to the longest of them.

    Args:
        examples: at least one.
        pad: the id that fills; it is never attended to or learned, so it may equal any token's.
        masked: whether the model has to be told of padding. Where no token sees what follows it,
            padding on the right changes nothing that is learned.
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
        labels[row, :end] = _labels(example)
    masked = masked and not mask.all()
    return _micro_batch(ids, mask, labels, masked=masked)


def pack(examples: Sequence[Example]) -> MicroBatch:
    """Put examples one after another into one row, without padding.

    Args:
        examples: at least one.
    """
    lengths = tuple(len(example) for example in examples)
    ids = np.concatenate([np.asarray(example.ids, dtype=np.int64) for example in examples])
    labels = np.concatenate([_labels(example) for example in examples])
    predicting = np.flatnonzero(labels != IGNORED) - 1
    documents = Documents(
        lengths,
        starts=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
        positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        predicting=torch.from_numpy(predicting if predicting.size else np.zeros(1, np.int64)),
    )
    batch = _micro_batch(ids[None], np.ones_like(ids[None]), labels[None], masked=False)
    return replace(batch, documents=documents)


def _labels(example: Example) -> NDArray[np.int64]:
    labels = np.asarray(example.ids, dtype=np.int64)
    # The first token of a sequence has no position before it to be predicted from.
    labels[: max(1, len(example) - example.supervised)] = IGNORED
    return labels


def _micro_batch(
    ids: NDArray[np.int64], mask: NDArray[np.int64], labels: NDArray[np.int64], *, masked: bool
) -> MicroBatch:
    supervised = labels != IGNORED
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(labels),
        tokens=int(mask.sum()),
        supervised=int(supervised.sum()),
        first=int(supervised.any(axis=0).argmax()) if supervised.any() else ids.shape[1],
        masked=masked,
    )


def unsupervised(batch: MicroBatch) -> MicroBatch:
    """Return the least that a model can be run on, in a batch's form: two tokens, none to learn."""
    ids = batch.input_ids[:1, :2]
    if batch.documents is not None:
        return replace(pack([Example(tuple(ids[0].tolist()), 0)]), tokens=0)
    return MicroBatch(
        ids,
        torch.ones_like(ids),
        torch.full_like(ids, IGNORED),
        tokens=0,
        supervised=0,
        first=1,
        masked=False,
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
        return chunks(order, batch_size)
    batches: list[list[int]] = []
    for group in chunks(order, batch_size * MEGABATCH):
        batches += chunks(sorted(group, key=lambda i: -lengths[i]), batch_size)
    return [batches[i] for i in generator.permutation(len(batches))]


T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> list[list[T]]:
    """Return items in lists of a size, the last perhaps shorter."""
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
