"""One step of MoFO: by hand, against the slow reference, and against torch's AdamW."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_mofo import MoFO
from cl_mofo.optim import step as step_module
from cl_mofo.optim.reference import reference_step
from cl_mofo.optim.selection import count, largest_on_device
from cl_mofo.optim.step import move, new_state, update_moments

pytestmark = pytest.mark.usefixtures("every_path")

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def bits(tensor):
    return tensor.detach().contiguous().view(INTEGERS[tensor.element_size()])


def same_bits(left, right):
    return left.dtype == right.dtype and torch.equal(bits(left), bits(right))


def same_values(left, right):
    return left.dtype == right.dtype and torch.equal(left, right)


def advance(param, grad, state, group, discard):
    """Take one step of one tensor as the optimizer does on a device."""
    rule = update_moments(param, grad, state, group, discard)
    chosen = None
    if group["update_fraction"] is not None:
        k = count(group["update_fraction"], param.numel())
        chosen = largest_on_device(state["exp_avg"].view(-1), k)
    move(param, state, group, rule, chosen, discard)


def random(shape, dtype, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)


def assert_like_reference(start, gradients, **options):
    """Step MoFO and the reference over the same gradients; every bit of all three is the same."""
    param = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
    optimizer = MoFO([param], **options)
    expected = start.clone()
    moment_dtype = torch.float64 if start.dtype == torch.float64 else torch.float32
    exp_avg = torch.zeros(start.shape, dtype=moment_dtype)
    exp_avg_sq = torch.zeros(start.shape, dtype=moment_dtype)
    # With a decay rate of 0, torch's lerp gives a gradient of -0.0 another sign in a tensor's last
    # few entries than in the others.
    same = same_bits if options.get("betas", (0.9,))[0] else same_values
    for number, grad in enumerate(gradients, start=1):
        param.grad = grad.clone(memory_format=torch.preserve_format)
        optimizer.step()
        expected, exp_avg, exp_avg_sq = reference_step(
            expected, grad, exp_avg, exp_avg_sq, number, **options
        )
        state = optimizer.state[param]
        assert same(state["exp_avg"], exp_avg)
        assert same(state["exp_avg_sq"], exp_avg_sq)
        assert same(param.detach(), expected)
        assert state["step"] == number
    return param


def test_two_steps_by_hand():
    # Four entries, half of them move, so two. lr 0.1, betas 0.5 and 0.75, no decay.
    param = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    optimizer = MoFO([param], lr=0.1, betas=(0.5, 0.75), eps=0.0, update_fraction=0.5)

    # m = g/2 = [2, -1, 1, 0.5] and v = g^2/4 = [4, 1, 1, 0.25]. |m|: entry 0, then 1 and 2 tie and
    # the smaller index wins. Corrected by 1 - 0.5 and 1 - 0.75, m/sqrt(v) is the gradient's sign.
    param.grad = torch.tensor([4.0, -2.0, 2.0, 1.0])
    optimizer.step()
    torch.testing.assert_close(param.data, torch.tensor([0.9, 2.1, 3.0, 4.0]))

    # m = m/2 + g/2 = [1, -0.5, 0.5, 4.25], v = 3v/4 + g^2/4 = [3, 0.75, 0.75, 16.1875]: entries 3
    # and 0. Corrections: 1 - 0.25 = 0.75 and 1 - 0.5625 = 0.4375.
    param.grad = torch.tensor([0.0, 0.0, 0.0, 8.0])
    optimizer.step()
    zeroth = 0.9 - 0.1 * (1 / 0.75) / math.sqrt(3 / 0.4375)
    third = 4 - 0.1 * (4.25 / 0.75) / math.sqrt(16.1875 / 0.4375)
    torch.testing.assert_close(param.data, torch.tensor([zeroth, 2.1, 3.0, third]))
    moments = optimizer.state[param]
    torch.testing.assert_close(moments["exp_avg"], torch.tensor([1.0, -0.5, 0.5, 4.25]))
    torch.testing.assert_close(moments["exp_avg_sq"], torch.tensor([3.0, 0.75, 0.75, 16.1875]))


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("selected", [0.9 * 2 - 0.1, 2.0]),  # entry 0 decays by 1 - 0.1 * 1, then moves by lr
        ("all", [0.9 * 2 - 0.1, 0.9 * 2]),
    ],
)
def test_decay_by_hand(decay, expected):
    param = torch.nn.Parameter(torch.tensor([2.0, 2.0]))
    optimizer = MoFO([param], lr=0.1, eps=0.0, weight_decay=1.0, update_fraction=0.5, decay=decay)
    param.grad = torch.tensor([3.0, 1.0])
    optimizer.step()
    torch.testing.assert_close(param.data, torch.tensor(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (7,), (5, 8), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("fraction", [0.05, 0.3, 1, None], ids=str)
@pytest.mark.parametrize(("weight_decay", "decay"), [(0.0, "selected"), (0.1, "all")])
def test_fast_is_the_reference(dtype, shape, fraction, weight_decay, decay):
    options = {"lr": 0.01, "weight_decay": weight_decay, "decay": decay}
    gradients = [random(shape, dtype, seed) for seed in range(1, 6)]
    assert_like_reference(random(shape, dtype, 0), gradients, update_fraction=fraction, **options)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_fast_is_the_reference_on_ties_zeros_and_subnormals(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    size = data.draw(st.integers(1, 12))
    # Few values, so that many tie; 1e-45 and 1e-41 are float32 subnormals, 1e-30 squares to zero.
    number = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-41, 1e-30, 6e4])
    vector = st.lists(number, min_size=size, max_size=size)
    gradients = [torch.tensor(g, dtype=dtype) for g in data.draw(st.lists(vector, min_size=1))]
    start = torch.tensor(data.draw(vector), dtype=dtype)
    assert_like_reference(
        start,
        gradients,
        lr=data.draw(st.sampled_from([0.0, 1e-3, 1])),
        betas=data.draw(st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.3, 0.0)])),
        weight_decay=data.draw(st.sampled_from([0.0, 0.1])),
        update_fraction=data.draw(st.sampled_from([0.05, "1/3", 0.5, 0.9, 1, None])),
        decay=data.draw(st.sampled_from(["selected", "all"])),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fraction", [0.05, None])
def test_fast_is_the_reference_on_a_tensor_of_many_chunks(monkeypatch, dtype, fraction):
    monkeypatch.setattr(step_module, "_CHUNK", 1 << 17)
    start, *gradients = (random((401, 999), dtype, seed) for seed in range(4))
    options = {"weight_decay": 0.1, "decay": "all"}
    assert_like_reference(start, gradients, lr=0.01, update_fraction=fraction, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fraction", [0.25, None])
@pytest.mark.parametrize("strided_grad", [True, False])
def test_strides_do_not_matter(dtype, fraction, strided_grad):
    # The flat index is the row-major one, whatever the memory's order; equal gradients make it
    # decide: of a 4x3 tensor the first three entries are row 0, not a part of column 0.
    start = random((3, 4), dtype, 0).t()
    grad = torch.ones(3, 4, dtype=dtype).t() if strided_grad else torch.ones(4, 3, dtype=dtype)
    options = {"lr": 0.1, "weight_decay": 0.1, "update_fraction": fraction}
    param = assert_like_reference(start, [grad, grad], **options)
    assert param.stride() == start.stride() == (1, 4)
    if fraction is not None:
        assert (param != start).nonzero().tolist() == [[0, 0], [0, 1], [0, 2]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unselected_entries_keep_their_bits(dtype):
    # -0.0, subnormals and a NaN's payload would all be lost by arithmetic on them.
    pattern = torch.arange(1000, dtype=torch.int64)
    start = random(1000, dtype, 0)
    integers = bits(start).clone()
    integers[::2] = (pattern[::2] * 37 - 7).to(integers.dtype)
    param = torch.nn.Parameter(integers.view(dtype).clone())
    optimizer = MoFO([param], lr=0.5, weight_decay=0.1, update_fraction=0.05)
    param.grad = torch.ones(1000, dtype=dtype)
    param.grad[501::10] = 2
    optimizer.step()
    moved = (bits(param) != integers).nonzero().flatten()
    assert moved.tolist() == list(range(501, 1000, 10))  # 50 of 1000
    assert len(moved) == count(0.05, 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("fraction", [1, None])
@pytest.mark.parametrize("decay", ["selected", "all"])
def test_unfiltered_it_is_torch_adamw(dtype, weight_decay, fraction, decay):
    shapes = [(), (33,), (17, 19), (130, 150)]
    settings = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    ours = [torch.nn.Parameter(random(s, dtype, 0)) for s in shapes]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    fused = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    reference = [(p.detach(), torch.zeros_like(p), torch.zeros_like(p)) for p in ours]
    filters = {"update_fraction": fraction, "decay": decay}
    optimizers = [
        MoFO(ours, **settings, **filters),
        torch.optim.AdamW(plain, foreach=False, fused=False, **settings),
        torch.optim.AdamW(fused, fused=True, **settings),
    ]
    for step in range(1, 13):
        for i, shape in enumerate(shapes):
            grad = random(shape, dtype, step, scale=10.0 ** (step % 7 - 4))
            ours[i].grad, plain[i].grad, fused[i].grad = grad, grad.clone(), grad.clone()
            p, m, v = reference[i]
            reference[i] = reference_step(p, grad, m, v, step, **settings, **filters)
        for optimizer in optimizers:
            optimizer.step()
    for p, q, r, (s, m, v) in zip(ours, plain, fused, reference, strict=True):
        assert same_bits(s, q.detach())
        assert same_bits(p, q)
        assert same_bits(m, optimizers[1].state[q]["exp_avg"])
        assert same_bits(v, optimizers[1].state[q]["exp_avg_sq"])
        # The fused kernel rounds differently: a few units in the last place after 12 steps.
        tolerance = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(p, r, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fraction", [0.1, None])
@pytest.mark.parametrize("decay", ["selected", "all"])
def test_the_step_that_never_asks_the_host_is_the_same(dtype, fraction, decay):
    group = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    group |= {"update_fraction": fraction, "decay": decay}
    param, expected = random((50, 40), dtype, 0), random((50, 40), dtype, 0)
    state = new_state(param)
    _, m, v = new_state(param).values()
    for step in range(1, 6):
        grad = random((50, 40), dtype, step)
        advance(param, grad, state, group, torch.tensor(False))
        expected, m, v = reference_step(expected, grad, m, v, step, **group)
        before = [param.clone(), *(t.clone() for t in state.values())]
        advance(param, grad * math.nan, state, group, torch.tensor(True))
        assert all(map(torch.equal, before, [param, *state.values()]))
    assert same_bits(state["exp_avg"], m)
    assert same_bits(state["exp_avg_sq"], v)
    # Its bias corrections are torch's powers instead of Python's: a last place may differ.
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(param, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fraction", [0.1, None])
def test_a_step_on_a_device_reads_nothing_back(dtype, fraction):
    # On the meta device there is nothing to read: a step that needs a value there raises.
    group = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    group |= {"update_fraction": fraction, "decay": "all"}
    param = torch.empty(50, 40, dtype=dtype, device="meta")
    flag = torch.zeros((), dtype=torch.bool, device="meta")
    advance(param, torch.empty_like(param), new_state(param), group, flag)
