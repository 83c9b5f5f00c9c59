"""The step's Triton kernels beside the slow reference: compiled on a GPU, else interpreted.

`test_triton.py` runs this file in a process of its own: whether kernels are interpreted is settled
when triton is first imported. The interpreter takes milliseconds for each block and launch, so
tensors are small, and so are blocks.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cl_mofo import MoFO
from cl_mofo.optim import triton_step
from cl_mofo.optim.pure import Pure
from cl_mofo.optim.reference import reference_selection, reference_step
from cl_mofo.optim.shards import Piece, Shards, shards_of
from cl_mofo.optim.step import new_state
from cl_mofo.optim.triton_step import Blocks, TritonStep
from cl_mofo.optim.work import Work

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTEGERS = {2: torch.int16, 4: torch.int32}
SMALL = {"block": 128, "part": 2, "warps": 4}

# Zeros of both signs, subnormals, neighbours one bit apart, both ends of float32.
TRICKY = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.0, -1.0, math.nextafter(1.0, 2.0), 3e38, -1e-30]
number = st.sampled_from(TRICKY) | st.floats(width=32, allow_nan=False, allow_infinity=False)


def bits(tensor):
    return tensor.detach().view(INTEGERS[tensor.element_size()]).cpu()


def moved(path, values, fraction):
    """Return the masks of what moves, given first moments, and check that the rest keeps its bits.

    Gradients that equal the moments leave them as they are. Every entry that moves is halved.
    """
    options = {"lr": 1.0, "betas": (0.0, 0.99), "eps": 1e-8, "weight_decay": 0.5}
    options |= {"update_fraction": fraction, "decay": "selected"}
    items = []
    for exp_avg in values:
        param = torch.ones_like(exp_avg, device=DEVICE)
        state = new_state(param)
        state["exp_avg"].copy_(exp_avg)
        state["exp_avg_sq"].fill_(math.inf)
        grad = exp_avg.to(DEVICE, copy=True)
        items.append(Work(options, param, grad, shards_of("p", param), state))
    assert all(path.takes(item) for item in items)
    path.step(items, None)
    masks = []
    for item, exp_avg in zip(items, values, strict=True):
        assert torch.equal(item.state["exp_avg"].cpu(), exp_avg)
        assert set(item.param.tolist()) <= {0.5, 1.0}
        masks.append((item.param == 0.5).cpu())
    return masks


@given(
    tensors=st.lists(st.lists(number, min_size=1, max_size=40), min_size=1, max_size=3),
    fraction=st.sampled_from([0.05, "1/3", 0.5, 0.9, 1, None]),
    listed=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(
    max_examples=8,
    deadline=None,
    phases=(Phase.generate,),  # to shrink would take minutes
    suppress_health_check=list(HealthCheck),
)
def test_the_selection_is_the_references(tensors, fraction, listed):
    values = [torch.tensor(tensor) for tensor in tensors]
    path = TritonStep(DEVICE, Blocks(**SMALL, listed=listed))
    for given_now in (values, [2.0**-60 * v for v in values]):  # the second far off the guess
        for exp_avg, mask in zip(given_now, moved(path, given_now, fraction), strict=True):
            assert torch.equal(mask, reference_selection(exp_avg, fraction))


def hard_cases():
    normal = torch.randn(250, generator=torch.Generator().manual_seed(0))
    return {
        "continuous": normal,
        "tied": normal.mul(2).round(),
        "mostly zero": normal * (torch.arange(250) % 50 == 7),
        "zeros of both signs": normal * 0,
        "equal": torch.full((250,), -3.0),
        "subnormal": normal * 1e-44,
        "one bit apart": (normal.sort().values[:150].view(torch.int32) & 7 | 0x3F800000).view(
            torch.float32
        ),
    }


@pytest.mark.parametrize(("fraction", "listed"), [(0.01, 1.0), (0.2, 0.0)])
def test_hard_cases_of_several_blocks(fraction, listed):
    cases = hard_cases()
    path = TritonStep(DEVICE, Blocks(**SMALL, listed=listed))
    for _ in range(2):  # with no guess, and with the right one
        masks = moved(path, list(cases.values()), fraction)
        for (name, exp_avg), mask in zip(cases.items(), masks, strict=True):
            assert torch.equal(mask, reference_selection(exp_avg, fraction)), name


def optimizer_of(params, groups, path):
    optimizer = MoFO(groups, lr=1e-2)
    optimizer._paths = (path, Pure())
    for param in params:
        optimizer.state[param].update(new_state(param))
    return optimizer


def random(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


SHAPES = [(300,), (7, 30), (), (129,), (40,)]
DTYPES = [torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16]
GROUPS = [
    {"update_fraction": 0.1, "weight_decay": 0.1},
    {"update_fraction": "1/3", "lr": 3e-3, "betas": (0.3, 0.9), "eps": 1e-3},
    {"update_fraction": None, "betas": [0.0, 0.0]},
    {"update_fraction": 0.2, "betas": (0.9, 0.95), "weight_decay": 0.2},
    {"update_fraction": 0.5, "decay": "all"},  # without weight decay nothing of it is left
]


def parameters():
    return [
        torch.nn.Parameter(random(shape, dtype, 0).to(DEVICE))
        for shape, dtype in zip(SHAPES, DTYPES, strict=True)
    ]


class Counted(TritonStep):
    def step(self, items, discard):
        self.taken = [item.param for item in items]
        super().step(items, discard)


def test_steps_are_the_references():
    params = parameters()
    path = Counted(DEVICE, Blocks(**SMALL, listed=0.1))
    groups = [{"params": [p], **g} for p, g in zip(params, GROUPS, strict=True)]
    optimizer = optimizer_of(params, groups, path)
    for turn in range(1, 3):
        for param in params:
            param.grad = random(param.shape, param.dtype, turn).to(DEVICE)
        if turn == 1:
            params[1].grad = None  # whose counter is one behind from now on
        stepped = [param for param in params if param.grad is not None]
        before = {
            p: [p.detach().clone(), *map(torch.clone, state_of(optimizer, p))] for p in params
        }
        versions = [param._version for param in stepped]
        optimizer.step()
        assert len(path.taken) == len(stepped)
        assert all(p._version > v for p, v in zip(stepped, versions, strict=True))
        for param, group in zip(params, optimizer.param_groups, strict=True):
            if param.grad is not None:
                is_a_step(param, optimizer.state[param], before[param], group)
    assert optimizer.state[params[1]]["step"] == 1
    optimizer.check()


def state_of(optimizer, param):
    state = optimizer.state[param]
    return state["exp_avg"], state["exp_avg_sq"], state["step"]


def is_a_step(param, state, before, group):
    """Hold a step to the reference's, to a few roundings, and its selection to the moment's."""
    start, exp_avg, exp_avg_sq, step = (t.cpu() for t in before)
    assert state["step"].item() == step + 1
    names = ("lr", "betas", "eps", "weight_decay", "update_fraction", "decay")
    expected = reference_step(
        start,
        param.grad.cpu(),
        exp_avg,
        exp_avg_sq,
        int(step) + 1,
        **{name: group[name] for name in names},
    )
    found = (param.detach().cpu(), state["exp_avg"].cpu(), state["exp_avg_sq"].cpu())
    for ours, theirs in zip(found, expected, strict=True):
        # Rounding is of the dtype; for bfloat16 Triton's interpreter truncates.
        tolerance = 4 * torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    selected = reference_selection(state["exp_avg"].cpu(), group["update_fraction"])
    assert torch.equal(bits(param)[~selected], bits(start)[~selected])
    if param.dtype == torch.float32:
        assert torch.equal(bits(param) != bits(start), selected)


def test_a_step_of_a_gradient_that_is_not_finite_changes_nothing():
    params = parameters()
    path = TritonStep(DEVICE, Blocks(**SMALL, listed=0.1))
    items = []
    for param, group in zip(params, GROUPS, strict=True):
        options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
        options |= {"decay": "selected", **group}
        grad = random(param.shape, param.dtype, 1).to(DEVICE)
        items.append(Work(options, param, grad, shards_of("p", param), new_state(param)))
    path.step(items, None)
    before = [[i.param.clone(), *(t.clone() for t in i.state.values())] for i in items]
    bad = [Work(i.options, i.param, i.grad * math.nan, i.shards, i.state) for i in items]
    path.step(bad, torch.tensor(True, device=DEVICE))
    for item, saved in zip(items, before, strict=True):
        assert all(map(torch.equal, saved, [item.param, *item.state.values()]))
    path.step(items, torch.tensor(False, device=DEVICE))
    for item, (old, *_) in zip(items, before, strict=True):
        assert item.state["step"] == 2
        assert not torch.equal(item.param, old)


def test_what_was_guessed_before_does_not_show():
    # As after a resume, which knows the moments and no guess.
    ends = []
    for forgetful in (False, True):
        params = parameters()[:2]
        path = TritonStep(DEVICE, Blocks(**SMALL, listed=0.1))
        optimizer = optimizer_of(params, [{"params": params, "update_fraction": 0.2}], path)
        for turn in range(3):
            if forgetful:
                optimizer._paths = (TritonStep(DEVICE, Blocks(**SMALL, listed=1.0)), Pure())
            for param in params:
                param.grad = random(param.shape, param.dtype, turn).to(DEVICE)
            optimizer.step()
        ends.append(params)
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("step", [1, 12_345, 3_000_000])
def test_bias_corrections_late_in_a_run(step):
    param = random((50,), torch.float32, 0).to(DEVICE)
    group = {"lr": 0.1, "betas": (0.9, 0.999999), "eps": 1e-8, "weight_decay": 0.0}
    group |= {"update_fraction": 0.5, "decay": "selected"}
    state = new_state(param)
    state["step"].fill_(step - 1)
    state["exp_avg_sq"].fill_(0.5)
    item = Work(group, param, torch.ones_like(param), shards_of("p", param), state)
    before = [param.clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone()]
    before.append(state["step"].clone())
    param.grad = item.grad
    TritonStep(DEVICE, Blocks(**SMALL)).step([item], None)
    is_a_step(param, state, before, group)


def test_a_second_moment_below_the_normal_range_divides():
    # v is 1e-42, whose root is 1e-21; were it flushed to 0, the move would be infinite.
    param = torch.zeros(4, device=DEVICE)
    group = {"lr": 1.0, "betas": (0.0, 0.0), "eps": 0.0, "weight_decay": 0.0}
    group |= {"update_fraction": 1, "decay": "selected"}
    state = new_state(param)
    grad = torch.full((4,), 1e-21, device=DEVICE)
    TritonStep(DEVICE, Blocks(**SMALL)).step(
        [Work(group, param, grad, shards_of("p", param), state)], None
    )
    # 1e-42 has ten bits, so its root is right to one part in 2000.
    torch.testing.assert_close(param.cpu(), torch.full((4,), -1.0), rtol=1e-3, atol=0)


def taken(param, grad=None, **options):
    known = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    known |= {"update_fraction": 0.5, "decay": "selected", **options}
    grad = torch.zeros_like(param) if grad is None else grad
    return TritonStep(DEVICE).takes(
        Work(known, param, grad, shards_of("p", param), new_state(param))
    )


def test_what_it_does_not_know_is_left_to_others():
    plain = torch.zeros(6, 4, device=DEVICE)
    assert taken(plain)
    assert taken(plain, update_fraction=None)
    assert taken(plain, decay="all", weight_decay=0.0)
    assert not taken(plain, decay="all")
    assert not taken(plain.double())
    assert not taken(plain.t())
    assert not taken(plain, grad=torch.zeros(4, 6, device=DEVICE).t())
    assert not taken(plain[:0])
    assert not taken(torch.zeros(6, 4, device="meta"))
    flat = torch.zeros(10, device=DEVICE)
    packed = Shards((Piece("a", 0, 4, 4), Piece("b", 4, 6, 6)))
    options = {"decay": "selected", "weight_decay": 0.0}
    assert not TritonStep(DEVICE).takes(Work(options, flat, flat, packed, new_state(flat)))
    spread = Shards((Piece("a", 0, 10, 20),), ranks="two of them")
    assert not TritonStep(DEVICE).takes(Work(options, flat, flat, spread, new_state(flat)))


def spoiled(monkeypatch, spoil):
    """Let the kernels be followed by something of which only the trial could know."""
    right = triton_step._Plan.step

    def step(plan, items, discard):
        right(plan, items, discard)
        for item in items:
            spoil(item)

    monkeypatch.setattr(triton_step._Plan, "step", step)


def not_a_number_where_it_moves(item):
    item.param[item.param != 1] = math.nan


def a_bit_where_it_stays(item):
    item.param[item.param == 1] += 2 * torch.finfo(item.param.dtype).eps


def rubbish_in_the_first_moment(item):
    item.state["exp_avg"] += 1e-3


def rubbish_in_the_second_moment(item):
    item.state["exp_avg_sq"] *= 1.001


@pytest.mark.parametrize(
    "spoil",
    [
        not_a_number_where_it_moves,
        a_bit_where_it_stays,
        rubbish_in_the_first_moment,
        rubbish_in_the_second_moment,
    ],
)
def test_kernels_that_are_not_right_are_not_taken(monkeypatch, caplog, spoil):
    spoiled(monkeypatch, spoil)
    assert not triton_step._works.__wrapped__(torch.device(DEVICE), torch.float32, torch.bfloat16)
    assert "for float32 and bfloat16 gradients, without Triton" in caplog.text


def test_what_does_not_compile_for_some_dtypes_is_taken_for_others(monkeypatch):
    def uncompiled(item):
        if torch.float16 in (item.param.dtype, item.grad.dtype):
            raise RuntimeError("PTX that is none")

    spoiled(monkeypatch, uncompiled)
    triton_step._works.cache_clear()
    plain = torch.zeros(6, 4, device=DEVICE)
    assert taken(plain)
    assert not taken(plain.half())
    assert not taken(plain, grad=plain.half())
    triton_step._works.cache_clear()


def test_the_trial_is_on_the_device_that_it_is_about(monkeypatch):
    current = []

    class Of:
        def __init__(self, tensor):
            self.device = tensor.device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *args):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", Of)
    launches = []
    spoiled(monkeypatch, lambda item: launches.append(current[-1] == item.param.device))
    assert triton_step._works.__wrapped__(torch.device(DEVICE), torch.float32, torch.float32)
    assert launches
    assert all(launches)


def test_all_that_a_step_sends_goes_by_the_way_that_pins(monkeypatch):
    # A copy in another way, as by `copy_`, would wait for all that is queued.
    sent = []

    def sending(tensor, device):
        sent.append(tensor.dtype)
        return tensor.to(device)

    path = TritonStep(DEVICE, Blocks(**SMALL))
    values = [torch.ones(5)]
    moved(path, values, 0.5)
    monkeypatch.setattr(triton_step, "to_device", sending)
    monkeypatch.setattr(torch.Tensor, "copy_", None)
    (plan,) = path._plans.values()
    param = torch.zeros(5, device=DEVICE)
    state = new_state(param)
    options = {"lr": 1.0, "betas": (0.0, 0.0), "eps": 0.0, "weight_decay": 0.0}
    options |= {"update_fraction": None, "decay": "selected"}
    work = Work(options, param, torch.ones_like(param), shards_of("p", param), state)
    plan.step([work], torch.zeros((), dtype=torch.bool, device=DEVICE))
    assert param.tolist() == [-1.0] * 5
    assert sent == [torch.int64, torch.float64, torch.bool]


def test_candidates_take_at_most_half_of_the_largest_tensor():
    path = TritonStep(DEVICE, Blocks(**SMALL, listed=1.0))
    moved(path, [torch.ones(n) for n in (100, 300, 200)], 0.5)
    (plan,) = path._plans.values()
    assert plan._candidates.numel() * 8 <= 300 * 4


@pytest.mark.skipif(DEVICE == "cpu", reason="without a GPU there is nothing to wait for")
def test_the_host_waits_for_nothing():
    params = parameters()
    optimizer = optimizer_of(params, [{"params": params}], TritonStep())
    busy = torch.zeros(8192, 8192, device=DEVICE)
    for turn in range(3):
        for param in params:
            param.grad = random(param.shape, param.dtype, turn).to(DEVICE)
        discard = torch.zeros((), dtype=torch.bool, device=DEVICE)
        for _ in range(30):
            busy @ busy
        queued = torch.cuda.Event()
        queued.record()
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        try:
            optimizer._paths[0].step(
                [
                    Work(group, p, p.grad, shards_of("p", p), optimizer.state[p])
                    for group in optimizer.param_groups
                    for p in group["params"]
                ],
                discard,
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
        # What torch does not see, as a copy from pageable memory, waits for all that is queued.
        assert not turn or not queued.query()
