"""What MoFO refuses, always with the value that was given."""

import math

import pytest
import torch

from cl_mofo.optim import MoFO


def parameter(*shape):
    return torch.nn.Parameter(torch.ones(*shape))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("eps", -1e-8),
        ("weight_decay", -0.01),
        ("betas", (1.0, 0.999)),
        ("betas", (0.9, -0.1)),
        ("betas", (0.9,)),
        ("betas", 0.9),
        ("update_fraction", 0),
        ("update_fraction", -0.05),
        ("update_fraction", 1.01),
        ("update_fraction", math.nan),
        ("update_fraction", "5%"),
        ("update_fraction", "1/0"),
        ("update_fraction", True),
        ("decay", "some"),
        ("decay", None),
    ],
)
def test_options_out_of_range_are_refused_with_their_value(option, value):
    shown = value[-1] if option == "betas" and value == (0.9, -0.1) else value
    shown = 1.0 if value == (1.0, 0.999) else shown
    with pytest.raises(ValueError, match=option) as caught:
        MoFO([parameter(2)], **({"lr": 0.1} | {option: value}))
    assert repr(shown) in str(caught.value)
    optimizer = MoFO([parameter(2)], lr=0.1)
    with pytest.raises(ValueError, match=option) as caught:
        optimizer.add_param_group({"params": [parameter(2)], option: value})
    assert repr(shown) in str(caught.value)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_other_dtypes_are_refused(dtype):
    bad = torch.zeros(2, dtype=dtype)
    with pytest.raises(ValueError, match=rf"parameter 1 is {dtype}"):
        MoFO([parameter(2), bad], lr=0.1)
    with pytest.raises(ValueError, match=rf"phase is {dtype}"):
        MoFO([("phase", bad)], lr=0.1)
    with pytest.raises(ValueError, match=rf"parameter 0 is {dtype}"):
        MoFO([parameter(2)], lr=0.1).add_param_group({"params": bad})


def test_sparse_gradients_are_refused_before_anything_changes():
    dense, embedding = parameter(2), torch.nn.Embedding(4, 3, sparse=True)
    optimizer = MoFO([("dense", dense), ("table", embedding.weight)], lr=0.1)
    dense.grad = torch.ones(2)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"table is torch\.sparse_coo"):
        optimizer.step()
    assert torch.equal(dense.detach(), torch.ones(2))
