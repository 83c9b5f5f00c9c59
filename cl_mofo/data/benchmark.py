"""TRACE as an Avalanche benchmark: one experience per task, in train, valid and test streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from cl_mofo.compat import repair_torchvision
from cl_mofo.data.batches import collate
from cl_mofo.data.records import SPLITS, Record, Splits, read_folder
from cl_mofo.data.tokenise import Encoder

repair_torchvision()

from avalanche.benchmarks import benchmark_from_datasets, with_task_labels  # noqa: E402
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute  # noqa: E402
from avalanche.benchmarks.utils.flat_data import ConstantSequence  # noqa: E402

STREAMS = {"train": "train", "eval": "valid", "test": "test"}
"""Avalanche's stream name for each of TRACE's splits."""

Collate = Callable[[list[dict[str, Any]]], Any]


class CausalCollator:
    """Collate records for Avalanche's own templates: `[input_ids, labels, task_labels]`.

    `labels` are shifted to the position that predicts them, so that a model of `input_ids` that
    returns logits [examples, length, vocabulary] is trained with a cross-entropy over both.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt_tokens: most prompt tokens kept.
        answer_tokens: most answer tokens kept.
    """

    def __init__(self, tokenizer: Any, prompt_tokens: int, answer_tokens: int) -> None:
        self.encoder = Encoder(tokenizer, prompt_tokens, answer_tokens)

    def __call__(self, items: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Return the tensors [examples, length], [examples, length] and [examples]."""
        examples = [self.encoder.encode(item["prompt"], item["answer"]) for item in items]
        batch = collate(examples, self.encoder.eos)
        tasks = torch.tensor([item["targets_task_labels"] for item in items])
        return [batch.input_ids[:, :-1], batch.labels[:, 1:], tasks]


def make_benchmark(records: Mapping[str, Splits], collate_fn: Collate | None = None) -> Any:
    """Make a benchmark of the tasks in the mapping's order.

    Args:
        records: {task: {"train" | "eval" | "test": records}}.
        collate_fn: makes a batch of a list of items; by default the list itself. An item is a
            record with its task label: {"prompt", "answer", "targets_task_labels"}.

    Returns:
        an Avalanche `CLScenario` with `train_stream`, `valid_stream` and `test_stream`; experience
        i of each holds task i, and has its name as `task_name`.
    """
    streams = {
        STREAMS[split]: [
            _dataset(splits[split], label, collate_fn or list)
            for label, splits in enumerate(records.values())
        ]
        for split in SPLITS
    }
    benchmark = with_task_labels(benchmark_from_datasets(**streams))
    for stream in benchmark.streams.values():
        for experience, task in zip(stream, records, strict=True):
            experience.task_name = task
    return benchmark


def _dataset(records: Sequence[Record], label: int, collate_fn: Collate) -> Any:
    labels = DataAttribute(
        ConstantSequence(label, len(records)), "targets_task_labels", use_in_getitem=True
    )
    return AvalancheDataset([_Items(records)], data_attributes=[labels], collate_fn=collate_fn)


class _Items(Dataset[dict[str, Any]]):
    """Records as Avalanche takes items: each a mapping of its own, to which labels are added."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.records[index])


def load_trace(
    path: str | Path, *, tasks: Sequence[str] | None = None, collate_fn: Collate | None = None
) -> Any:
    """Read a TRACE folder (any variant: 500, 1000, 5000 examples) as an Avalanche benchmark.

    Args:
        path: the folder, `<path>/<task>/{train,eval,test}.json`.
        tasks: task names in the order to learn them; TRACE's eight in TRACE's order by default.
        collate_fn: see `make_benchmark`; `CausalCollator` serves Avalanche's own templates.

    Returns:
        see `make_benchmark`.

    Raises:
        UserError: data are missing or wrong, every problem named (see `read_folder`).
    """
    if tasks is None:
        from cl_mofo.discovery import registry

        tasks = [task.name for task in registry().suite("trace")]
    return make_benchmark(read_folder(path, tasks).records, collate_fn)
