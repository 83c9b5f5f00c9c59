"""The embedded model under Avalanche's own templates and plugins, on texts of one length."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contenders import padded
from benchmarks.setting import Setting
from cl_mofo.compat import repair_torchvision
from cl_mofo.data.batches import IGNORED
from cl_mofo.data.tokenise import Example

repair_torchvision()

from avalanche.benchmarks import benchmark_from_datasets, with_task_labels  # noqa: E402
from avalanche.benchmarks.utils import (  # noqa: E402
    AvalancheDataset,
    ConstantSequence,
    DataAttribute,
)
from avalanche.core import SupervisedPlugin  # noqa: E402, F401
from avalanche.training import Naive  # noqa: E402
from avalanche.training.plugins import (  # noqa: E402
    AGEMPlugin,
    EvaluationPlugin,
    EWCPlugin,
    GEMPlugin,
    ReplayPlugin,
)


class Logits(torch.nn.Module):
    """A causal language model that gives [examples, vocabulary, positions], as losses want it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor) -> Tensor:
        return self.module(input_ids=ids).logits[:, :-1].transpose(1, 2)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels[:, 1:], ignore_index=IGNORED)


def benchmark(tasks: Sequence[Sequence[Example]], pad: int) -> Any:
    """Return experiences of tensors: every example padded to the longest of all."""
    width = max(len(example) for examples in tasks for example in examples)
    datasets = []
    for label, examples in enumerate(tasks):
        made = padded(examples, pad, left=False)
        room = width - made["input_ids"].shape[1]
        ids = F.pad(made["input_ids"], (0, room), value=pad)
        labels = F.pad(made["labels"], (0, room), value=IGNORED)
        attribute = DataAttribute(
            ConstantSequence(label, len(examples)), "targets_task_labels", use_in_getitem=True
        )
        rows = torch.utils.data.TensorDataset(ids, labels)
        datasets.append(AvalancheDataset([rows], data_attributes=[attribute]))
    return with_task_labels(benchmark_from_datasets(train=datasets))


def plugins(memories: int, batch: int, strength: float) -> dict[str, Callable[[], list[Any]]]:
    """Return what makes each strategy's plugins, with as many memories of a task as ours keeps."""
    return {
        "sequential": list,
        "ewc": lambda: [EWCPlugin(strength / 2, mode="separate")],
        "gem": lambda: [GEMPlugin(memories, 0.5)],
        "agem": lambda: [AGEMPlugin(memories, batch)],
        "replay": lambda: [ReplayPlugin(memories * 8, batch_size=batch, batch_size_mem=batch)],
    }


def naive(made: Setting, given: Sequence[Any]) -> Naive:
    """Return Avalanche's plain strategy over a copy of the model."""
    model, settings = Logits(made.model("float32").module), made.recipe.optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin()
    return Naive(
        model=model,
        optimizer=torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=settings.betas, fused=True
        ),
        criterion=loss,
        train_mb_size=settings.batch_size,
        train_epochs=1,
        plugins=list(given),
        evaluator=evaluator,
    )
