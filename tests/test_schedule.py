"""The learning rate within a task."""

import pytest
import torch

from cl_mofo.schedule import lr_factor


def test_cosine_equals_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for step in range(7):
        assert lr_factor("cosine", step, 7) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()


def test_linear_and_constant():
    assert [lr_factor("linear", step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [lr_factor("constant", step, 4) for step in range(4)] == [1, 1, 1, 1]


def test_warmup_rises_to_the_peak_and_then_falls():
    # Two warm-up steps of six: 1/3, 2/3, then linear from 1 over the four that are left.
    factors = [lr_factor("linear", step, 6, warmup=2) for step in range(6)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'square'"):
        lr_factor("square", 0, 1)
