"""A gradient that is not finite: nothing changes, and the error names the parameter."""

import copy
import math
import pickle

import pytest
import torch

from cl_mofo.optim import GradientCheck, MoFO, NonFiniteGradientError
from cl_mofo.optim.nonfinite import _are_finite_together

pytestmark = pytest.mark.usefixtures("every_path")

BAD = [math.nan, math.inf, -math.inf]


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))


def backward(net, seed):
    net.zero_grad()
    net(torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))).pow(2).sum().backward()


def snapshot(net, optimizer):
    state = optimizer.state_dict()["state"]
    return copy.deepcopy([[p.detach() for p in net.parameters()], state])


def assert_unchanged(before, net, optimizer):
    params, state = snapshot(net, optimizer)
    assert all(map(torch.equal, params, before[0]))
    assert state.keys() == before[1].keys()
    for key, saved in before[1].items():
        assert all(torch.equal(state[key][name], saved[name]) for name in saved)


@pytest.fixture
def deferred(monkeypatch):
    """On a CPU the verdict is free; act as on a device, where it is read a step later."""
    monkeypatch.setattr(MoFO, "_defers", staticmethod(lambda gradients: True))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("fraction", [0.2, None])
def test_on_a_cpu_the_error_comes_at_once(bad, steps_before, fraction):
    net = model()
    optimizer = MoFO(net.named_parameters(), 0.1, weight_decay=0.1, update_fraction=fraction)
    for seed in range(steps_before):
        backward(net, seed)
        optimizer.step()
    before = snapshot(net, optimizer)
    backward(net, 9)
    net[1].weight.grad[2, 3] = bad
    with pytest.raises(NonFiniteGradientError, match=r"1\.weight") as caught:
        optimizer.step()
    assert caught.value.names == ("1.weight",)
    assert_unchanged(before, net, optimizer)
    assert len(optimizer.state) == (4 if steps_before else 0)
    backward(net, 9)
    optimizer.step()  # and it goes on
    assert optimizer.state[net[0].weight]["step"] == steps_before + 1


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("fraction", [0.2, None])
@pytest.mark.parametrize("decay", ["selected", "all"])
def test_on_a_device_it_comes_with_the_next_step(bad, steps_before, fraction, decay):
    net = model()
    filters = {"update_fraction": fraction, "decay": decay}
    optimizer = MoFO(net.named_parameters(), 0.1, weight_decay=0.1, **filters)
    for seed in range(steps_before):
        backward(net, seed)
        optimizer.step()
    before = snapshot(net, optimizer)
    backward(net, 9)
    net[1].weight.grad[2, 3] = bad
    optimizer.step()
    if steps_before:
        assert_unchanged(before, net, optimizer)
    else:  # the state is made, and all zero
        assert all(map(torch.equal, before[0], [p.detach() for p in net.parameters()]))
        assert not any(t.any() for s in optimizer.state.values() for t in s.values())
    before = snapshot(net, optimizer)
    backward(net, 10)
    with pytest.raises(NonFiniteGradientError, match=r"1\.weight"):
        optimizer.step()
    assert_unchanged(before, net, optimizer)
    optimizer.step()  # told once; the gradients at hand are good
    assert optimizer.state[net[0].weight]["step"] == steps_before + 1


@pytest.mark.usefixtures("deferred")
def test_a_device_takes_the_steps_a_cpu_takes(monkeypatch):
    ours, theirs = model(), model()
    deferring = MoFO(ours.parameters(), 0.1, update_fraction=0.2)
    immediate = MoFO(theirs.parameters(), 0.1, update_fraction=0.2)
    monkeypatch.setattr(immediate, "_defers", lambda gradients: False)
    for seed in range(5):
        backward(ours, seed)
        backward(theirs, seed)
        deferring.step()
        immediate.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("deferred")
def test_check_tells_after_the_last_step():
    net = model()
    optimizer = MoFO(net.parameters(), 0.1)
    backward(net, 0)
    optimizer.step()
    optimizer.check()
    net[0].bias.grad[0] = math.nan
    optimizer.step()
    with pytest.raises(NonFiniteGradientError, match=r"parameter 1 of group 0, shape \(5,\)"):
        optimizer.check()
    optimizer.check()


@pytest.mark.usefixtures("deferred")
def test_loading_a_state_forgets_the_bad_step():
    net = model()
    optimizer = MoFO(net.parameters(), 0.1)
    saved = copy.deepcopy(optimizer.state_dict())
    backward(net, 0)
    net[0].bias.grad[0] = math.nan
    optimizer.step()
    optimizer.load_state_dict(saved)
    optimizer.check()


def test_every_parameter_concerned_is_named():
    net = model()
    optimizer = MoFO(net.named_parameters(), 0.1)
    for p in net.parameters():
        p.grad = torch.full_like(p, math.nan)
    with pytest.raises(NonFiniteGradientError, match=r"0\.weight, 0\.bias, 1\.weight and 1 more"):
        optimizer.step()


def test_large_finite_gradients_pass():
    # Their sum and their squares overflow, they do not.
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        grad = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
        GradientCheck([("a", grad), ("b", -grad), ("empty", grad[:0])]).raise_if_found()
    GradientCheck([]).raise_if_found()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_way_of_a_gpu_finds_each_that_is_not_finite(dtype):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    largest = torch.finfo(dtype).max
    values = [1.0, math.nan, -largest, -math.inf, math.inf, largest, 0.0]
    gradients = [torch.ones(5000 + i, dtype=dtype, device=device) for i in range(len(values))]
    for number, (grad, value) in enumerate(zip(gradients, values, strict=True)):
        grad[700 * number] = value
    found = [bool(flag) for flag in _are_finite_together(gradients)]
    assert found == [math.isfinite(value) for value in values]


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(NonFiniteGradientError(["a"])))
    assert error.names == ("a",)
    assert "gradient of a is not finite" in str(error)


def test_whoever_has_looked_at_the_gradients_can_say_what_was_found():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        [torch.nn.Parameter(torch.ones(70_000)), torch.nn.Parameter(torch.ones(7))]
        for _ in range(2)
    )
    told, alone = MoFO(ours, lr=0.1), MoFO(theirs, lr=0.1)
    for found in (0.0, 1.0, 0.0):
        for mine, other in zip(ours, theirs, strict=True):
            other.grad = torch.randn(other.shape, generator=generator)
            mine.grad = other.grad.clone() if not found else torch.full_like(other, torch.nan)
        told.found_inf = torch.tensor(found)
        told.step()
        if not found:
            alone.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other)
            for key, value in alone.state[other].items():
                assert torch.equal(told.state[mine][key], value)
