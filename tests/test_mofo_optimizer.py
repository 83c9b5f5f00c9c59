"""MoFO as a torch optimizer: with groups, schedulers, clipping, scaling, closures and copies."""

import copy
import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch

import cl_mofo
from cl_mofo.optim import MoFO, authors_groups

pytestmark = pytest.mark.usefixtures("every_path")


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 4))


def backward(net, seed=0):
    net.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    loss = net(torch.randn(8, 6, generator=generator)).pow(2).mean()
    loss.backward()
    return loss


def parameter(*shape):
    return torch.nn.Parameter(torch.ones(*shape))


def test_it_is_exported():
    assert cl_mofo.MoFO is MoFO


def test_it_trains():
    net = model()
    optimizer = MoFO(net.parameters(), 0.03, update_fraction=0.3)
    first = backward(net).item()
    for _ in range(60):
        optimizer.step()
        last = backward(net).item()
    assert last < first / 10


@pytest.mark.parametrize("fraction", [0.05, 0.07, 0.5])
def test_each_tensor_moves_its_share(fraction):
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = MoFO(net.parameters(), 0.1, update_fraction=fraction)
    backward(net)
    optimizer.step()
    for p, old in zip(net.parameters(), before, strict=True):
        most = math.ceil(Fraction(str(fraction)) * p.numel())
        nonzero = int((optimizer.state[p]["exp_avg"] != 0).sum())
        assert int((p != old).sum()) == min(most, nonzero)


def test_groups_have_their_own_options():
    filtered, free, frozen = parameter(100), parameter(100), parameter(100)
    groups = [
        {"params": [filtered]},
        {"params": free, "update_fraction": None},
        {"params": [frozen], "lr": 0.0},
    ]
    optimizer = MoFO(groups, lr=0.1, update_fraction=0.07)
    late = parameter(100)
    optimizer.add_param_group({"params": [late], "update_fraction": "1/4"})
    for p in (filtered, free, frozen, late):
        p.grad = torch.ones(100)
    optimizer.step()
    moved = [int((p != 1).sum()) for p in (filtered, free, frozen, late)]
    assert moved == [7, 100, 0, 25]


def test_parameters_without_a_gradient_are_skipped():
    with_grad, without = parameter(3), parameter(3)
    optimizer = MoFO([with_grad, without], lr=0.1, weight_decay=0.1, update_fraction=None)
    with_grad.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(without.detach(), torch.ones(3))
    assert without not in optimizer.state
    MoFO([parameter(3)], lr=0.1).step()


def test_a_tied_parameter_is_one_partition():
    embedding, head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    twice = [("embedding", embedding.weight), ("head", head.weight)]
    optimizer = MoFO(twice, lr=0.1, update_fraction=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["embedding"]
    before = embedding.weight.detach().clone()
    head(embedding(torch.arange(10))).pow(2).sum().backward()
    optimizer.step()
    assert int((embedding.weight != before).sum()) == 4
    assert optimizer.state[head.weight]["step"] == 1


def test_learning_rate_schedulers():
    param = parameter(1)
    optimizer = MoFO([param], lr=0.4, eps=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    positions = [1.0]
    for _ in range(3):
        param.grad = torch.ones(1)  # with a constant gradient every step is lr long
        optimizer.step()
        scheduler.step()
        positions.append(param.item())
    assert positions == pytest.approx([1.0, 0.6, 0.4, 0.3])


def test_clipping_scales_what_is_accumulated():
    param = parameter(2)
    optimizer = MoFO([param], lr=0.1, betas=(0.5, 0.5))
    param.grad = torch.tensor([30.0, 40.0])
    torch.nn.utils.clip_grad_norm_([param], 1.0)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[param]["exp_avg"], torch.tensor([0.3, 0.4]))


def test_a_closure_computes_the_gradient():
    param = parameter(2)
    optimizer = MoFO([param], lr=0.1, eps=0.0, update_fraction=1)

    def closure():
        optimizer.zero_grad()
        loss = (3 * param).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6
    torch.testing.assert_close(param.data, torch.tensor([0.9, 0.9]))
    assert optimizer.step() is None


def test_gradient_scaling_skips_overflow_and_changes_nothing_else():
    scaled, plain = model(), model()
    ours, theirs = (MoFO(net.parameters(), 0.1, update_fraction=0.2) for net in (scaled, plain))
    scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0)
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        ours.zero_grad()
        scaler.scale(scaled(inputs).pow(2).mean()).backward()
        if step == 2:
            scaled[0].weight.grad[0, 0] = math.inf
        scaler.step(ours)
        scaler.update()
        if step != 2:
            theirs.zero_grad()
            plain(inputs).pow(2).mean().backward()
            theirs.step()
    assert scaler.get_scale() == 512
    assert ours.state[scaled[0].weight]["step"] == 3
    for p, q in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)  # the scale is a power of two


def test_a_gradient_of_what_was_computed_before_a_step_is_refused():
    param = parameter(3)
    optimizer = MoFO([param], lr=0.1)
    loss = param.pow(2).sum()
    param.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("fraction", [0.07, "0.07", "7/100", Fraction(7, 100), Decimal("0.07")])
def test_fractions_may_be_written_in_many_ways(fraction):
    param = parameter(100)
    optimizer = MoFO([param], lr=0.1, update_fraction=fraction)
    param.grad = torch.ones(100)
    optimizer.step()
    assert int((param != 1).sum()) == 7


def test_authors_groups():
    names = [
        "embed_tokens.weight",
        "layers.0.q_proj.weight",
        "layers.0.q_proj.bias",
        "layers.0.input_layernorm.weight",
        "layers.0.input_layernorm.bias",
        "ln_f.weight",
        "norm.weight",
    ]
    named = [(name, parameter(20)) for name in names]
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    groups = authors_groups([*named, ("frozen", frozen)], weight_decay=0.1)
    optimizer = MoFO(groups, lr=0.1, update_fraction=0.05)
    found = {
        name: (group["update_fraction"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert found == {
        "embed_tokens.weight": (0.05, 0.1),
        "layers.0.q_proj.weight": (0.05, 0.1),
        "layers.0.q_proj.bias": (None, 0.1),
        "layers.0.input_layernorm.weight": (None, 0.0),
        "layers.0.input_layernorm.bias": (None, 0.0),
        "ln_f.weight": (0.05, 0.0),
        "norm.weight": (None, 0.0),
    }
    for _, param in named:
        param.grad = torch.ones(20)
    optimizer.step()
    assert [int((p != 1).sum()) for _, p in named] == [1, 1, 20, 20, 20, 1, 20]


def test_a_copy_goes_its_own_way():
    net = model()
    optimizer = MoFO(net.named_parameters(), 0.1, update_fraction=0.2)
    backward(net)
    optimizer.step()
    net_copy, copied = copy.deepcopy((net, optimizer))
    before = [p.detach().clone() for p in net.parameters()]
    moments = optimizer.state[net[0].weight]["exp_avg"].clone()
    backward(net_copy, seed=1)
    copied.step()
    assert all(map(torch.equal, before, [p.detach() for p in net.parameters()]))
    assert torch.equal(optimizer.state[net[0].weight]["exp_avg"], moments)
    backward(net, seed=1)
    optimizer.step()
    for p, q in zip(net.parameters(), net_copy.parameters(), strict=True):
        assert torch.equal(p, q)
