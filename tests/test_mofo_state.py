"""Saving and loading MoFO: the run goes on with the same bits."""

import copy
import json
from decimal import Decimal

import pytest
import torch
from safetensors.torch import load, save

from cl_mofo.optim import MoFO, Piece, Shards

pytestmark = pytest.mark.usefixtures("every_path")


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)).to(dtype)


def train(net, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(8, 6, generator=generator).to(net[0].weight.dtype)
        net.zero_grad()
        net(inputs).pow(2).mean().backward()
        optimizer.step()


def through_files(state_dict):
    """As a checkpoint does it: tensors to safetensors, all else to JSON."""
    state = state_dict["state"]
    tensors = {f"{i}.{name}": t for i, entry in state.items() for name, t in entry.items()}
    tensors, groups = load(save(tensors)), json.loads(json.dumps(state_dict["param_groups"]))
    loaded = {}
    for key, tensor in tensors.items():
        index, name = key.split(".")
        loaded.setdefault(int(index), {})[name] = tensor
    return {"state": loaded, "param_groups": groups}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", [lambda state: state, copy.deepcopy, through_files])
@pytest.mark.parametrize("fraction", [0.2, Decimal("0.2"), None], ids=str)
def test_a_loaded_run_continues_with_the_same_bits(dtype, way, fraction):
    net = model(dtype)
    options = {"lr": 0.05, "betas": (0.8, 0.99), "update_fraction": fraction, "decay": "all"}
    optimizer = MoFO(net.named_parameters(), **options, weight_decay=0.1)
    train(net, optimizer, range(4))
    net_copy = copy.deepcopy(net)
    resumed = MoFO(net_copy.named_parameters(), lr=1.0)
    resumed.load_state_dict(way(optimizer.state_dict()))

    train(net, optimizer, range(4, 8))
    train(net_copy, resumed, range(4, 8))
    for p, q in zip(net.parameters(), net_copy.parameters(), strict=True):
        assert torch.equal(p, q)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            left, right = optimizer.state[p][name], resumed.state[q][name]
            assert left.dtype == right.dtype
            assert torch.equal(left, right)
            assert left.data_ptr() != right.data_ptr()
    assert optimizer.state[net[0].weight]["step"] == 8


def test_moments_of_bfloat16_parameters_are_not_rounded():
    net = model(torch.bfloat16)
    optimizer = MoFO(net.parameters(), 0.05)
    train(net, optimizer, range(3))
    moments = optimizer.state[net[0].weight]["exp_avg"]
    assert moments.dtype == torch.float32
    assert not torch.equal(moments, moments.bfloat16().float())  # else rounding would not show
    seen = []
    other = MoFO(model(torch.bfloat16).parameters(), 0.05)
    # A user's hook may hand over another state; it is that one which is loaded.
    other.register_load_state_dict_pre_hook(lambda _, state: seen.append(state) or dict(saved))
    saved = optimizer.state_dict()
    other.load_state_dict({"state": {}, "param_groups": saved["param_groups"]})
    assert len(seen) == 1
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], moments)


def test_the_state_of_strided_parameters_is_row_major():
    param = torch.nn.Parameter(torch.ones(3, 4).t())
    optimizer = MoFO([param], lr=0.1)
    param.grad = torch.ones(4, 3)
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["state"][0]["exp_avg"].is_contiguous()
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].t().contiguous().t()
    optimizer.load_state_dict(saved)
    assert optimizer.state[param]["exp_avg"].is_contiguous()
    optimizer.step()


def test_a_loaded_state_leaves_what_is_known_of_shards():
    flat = torch.nn.Parameter(torch.ones(4))
    optimizer = MoFO([flat], lr=0.1, update_fraction=0.5)
    optimizer.shard({flat: Shards((Piece("a", 0, 2, 2), Piece("b", 2, 2, 2)))})
    for _ in range(2):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = flat.detach().clone()
        flat.grad = torch.tensor([1.0, 2.0, 4.0, 8.0])
        optimizer.step()
        # One of each tensor's two entries; the two largest of all four would be the last two.
        assert (flat != before).tolist() == [False, True, False, True]


def test_what_does_not_fit_is_refused_and_changes_nothing():
    net = model()
    optimizer = MoFO(net.named_parameters(), 0.05)
    train(net, optimizer, range(2))
    good = copy.deepcopy(optimizer.state_dict())

    def refused(match, change):
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(ValueError, match=match):
            optimizer.load_state_dict(bad)
        assert optimizer.param_groups[0]["lr"] == 0.05
        assert torch.equal(optimizer.state[net[0].weight]["exp_avg"], good["state"][0]["exp_avg"])

    refused("lr must be .* -1", lambda bad: bad["param_groups"][0].update(lr=-1))
    refused("no update_fraction", lambda bad: bad["param_groups"][0].pop("update_fraction"))
    refused(
        r"0\.weight: exp_avg has the shape \(5,\), not \(5, 6\)",
        lambda bad: bad["state"][0].update(exp_avg=torch.zeros(5)),
    )
    refused("different number of parameter groups", lambda bad: bad["param_groups"].pop())
    refused("size of optimizer's group", lambda bad: bad["param_groups"][0]["params"].pop())
