"""Loose bounds of the measured ratios: what would break one of them is no noise.

Each has room for a busy machine: the official figures are in docs/performance.md.
"""

import pytest
import torch

from benchmarks import scoring, setting, timing, training
from cl_mofo.optim import MoFO, authors_groups
from cl_mofo.optim.native import library

pytestmark = pytest.mark.slow


def optimizer(kind, **settings):
    """An optimizer over a layer's worth of tensors, with gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"up.weight": (2816, 1024), "down.weight": (1024, 2816), "norm.weight": (1024,)}
    named = [
        (name, torch.nn.Parameter(torch.randn(shape, generator=generator)))
        for name, shape in shapes.items()
    ]
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    groups = authors_groups(named, weight_decay=0.0)
    if kind is torch.optim.AdamW:
        groups = [{k: v for k, v in group.items() if k != "update_fraction"} for group in groups]
    return kind(groups, lr=1e-5, **settings)


@pytest.mark.skipif(library(torch.float32) is None, reason="there is no C compiler")
@pytest.mark.parametrize("fraction", [0.05, 0.2])
def test_a_step_of_mofo_takes_at_most_six_of_adamw(fraction):
    contenders = {
        "AdamW": optimizer(torch.optim.AdamW, fused=True).step,
        "MoFO": optimizer(MoFO, update_fraction=fraction).step,
    }
    _, mofo = timing.ratios(timing.interleaved(contenders, 15, warmup=3), "AdamW")
    assert mofo["ratio"] < 6


def test_training_wastes_no_padding_and_is_faster_than_padded():
    made = setting.setting(
        "random:small",
        None,
        [
            "tasks.epochs=1",
            "data.train_limit=16",
            "optimizer.batch_size=16",
            "training.micro_batch_size=16",
        ],
        device="cpu",
    )
    rows, _ = training.measure(made, "float32")
    by_name = {row["name"]: row for row in rows}
    assert by_name[training.PLAIN]["computed/real"] > 1.3
    assert by_name[training.OURS]["computed/real"] <= 1.05
    assert by_name[training.OURS]["vs plain"] > 1.1
    assert by_name[training.OURS]["vs Trainer"] > 1.0


def test_scoring_is_faster_than_in_traces_way():
    made = setting.setting("tiny", None, ["data.test_limit=24", "data.train_limit=8"], device="cpu")
    rows, _ = scoring.measure(made, scoring.tune(made, 4))
    ours = next(row for row in rows if row["name"] == scoring.OURS)
    assert ours["vs TRACE"] > 1.5
    assert ours["equal scores"]
