"""Selection over ranks: what each selects of its parts is what a plain sort selects of the whole.

Three processes are started once; pairs of them and single ones are groups within. Each goes through
the same random cases and writes down where it differs.
"""

import json
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from cl_mofo.optim import sharded
from cl_mofo.optim.sharded import Traffic, largest_sharded, traffic
from tests.forked import finish, start

WORLD = 3
GROUPS = {1: [2], 2: [1, 2], 3: [0, 1, 2]}  # ranks in a group are not those in the world
SEEDS = range(80)
LARGE = sharded._CHUNK + 5


def magnitudes(values):
    return np.abs(values).view(f"i{values.itemsize}")


def sorted_choice(values, k):
    """The k largest |value|, ties to the smallest index, ascending."""
    return np.sort(np.argsort(-magnitudes(values), kind="stable")[:k])


def patterns(rng, dtype, n):
    """Random bits, of all exponents; infinities for what is not a number, and a few more."""
    values = rng.integers(0, 256, n * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    return np.where(np.isnan(values) | (rng.random(n) < 0.05), -np.inf, values)


def subnormals(rng, dtype, n):
    return rng.integers(0, 1000, n, f"i{np.dtype(dtype).itemsize}").view(dtype)


VALUES = {
    "momentum": lambda rng, dtype, n: (1e-4 * rng.standard_normal(n)).astype(dtype),
    "neighbours": lambda rng, dtype, n: np.nextafter(dtype(1), dtype(2)) ** rng.integers(0, 3, n),
    "tied": lambda rng, dtype, n: rng.choice(np.array([-2, -1, 1, 2, 0], dtype), n),
    "equal": lambda rng, dtype, n: rng.choice(np.array([-0.5, 0.5], dtype), n),
    "zero": lambda rng, dtype, n: rng.choice(np.array([-0.0, 0.0], dtype), n),
    "patterns": patterns,
    "subnormals": subnormals,
}


def case(seed, ranks):
    """Return a few tensors of one dtype, each with its count and where it is cut into parts."""
    rng = np.random.default_rng([seed, ranks])
    dtype = (np.float32, np.float64)[seed % 2]
    tensors = []
    for _ in range(rng.integers(1, 5)):
        n = int(rng.choice([0, 1, 2, 3, rng.integers(4, 40), rng.integers(40, 400)]))
        values = VALUES[rng.choice(list(VALUES))](rng, dtype, n).astype(dtype)
        k = int(rng.choice([0, min(1, n), n, -(-n // 20), rng.integers(0, n + 1)]))
        inner = rng.choice([0, n, rng.integers(0, n + 1)], ranks - 1)  # 0 and n leave empty parts
        tensors.append((values, k, [0, *sorted(inner.tolist()), n]))
    return tensors


def large_case(ranks):
    """More than a chunk on each rank, the smallest selected magnitude tied across all of them."""
    rng = np.random.default_rng(ranks)
    n = LARGE * ranks
    values = rng.integers(-50, 51, n).astype(np.float32)
    k = int((np.abs(values) > 40).sum() + (np.abs(values) == 40).sum() * (1 - 0.25 / ranks))
    return [(values, k, [LARGE * rank for rank in range(ranks + 1)])]


def select(tensors, rank, group):
    parts = [torch.from_numpy(v[cuts[rank] : cuts[rank + 1]]) for v, _, cuts in tensors]
    counts, sizes = [k for _, k, _ in tensors], [len(v) for v, _, _ in tensors]
    return largest_sharded(parts, counts, sizes, group)


def differences(tensors, rank, group):
    """Return the numbers of the tensors from whose part another selection was made."""
    wrong = []
    found = list(select(tensors, rank, group))
    assert len(found) == len(tensors)
    for number, (values, k, cuts) in enumerate(tensors):
        chosen = sorted_choice(values, k)
        here = chosen[(chosen >= cuts[rank]) & (chosen < cuts[rank + 1])] - cuts[rank]
        if found[number].dtype != torch.int64 or found[number].tolist() != here.tolist():
            wrong.append(number)
    return wrong


class Counted(TorchDispatchMode):
    """Notes each collective below torch.distributed, with the bytes of its largest tensor list."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function.__name__.split(".")[0]
            first = args[0][0] if name == "allgather_" else args[0]
            self.calls.append((name, sum(t.numel() * t.itemsize for t in first)))
        return function(*args, **kwargs or {})

    def traffic(self):
        reduced = [size for name, size in self.calls if name == "allreduce_"]
        gathered = [size for name, size in self.calls if name == "allgather_"]
        assert len(reduced) + len(gathered) == len(self.calls)
        return Traffic(len(self.calls), sum(reduced), sum(gathered))


def counted(tensors, dtype, rank, group):
    """Return what the call sends, and how many collectives the iteration makes."""
    ranks = dist.get_world_size(group)
    made = [(np.ones(ranks, dtype), 1, list(range(ranks + 1)))] * tensors
    with Counted() as before:
        indices = select(made, rank, group)
    with Counted() as after:
        list(indices)
    return before.traffic(), len(after.calls)


def refusal(rank, group):
    """Give one entry less than the size says."""
    try:
        largest_sharded([torch.ones(2)], [1], [2 * dist.get_world_size(group) + 1], group)
    except ValueError as error:
        return str(error)


def go_through(rank, folder):
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    report = {}
    for ranks, members in GROUPS.items():
        group = dist.new_group(members)
        if rank not in members:
            continue
        own = dist.get_rank(group)
        seen = report[ranks] = {"refusal": refusal(own, group), "cases": 0, "differ": []}
        for seed in SEEDS:
            sharded._CHUNK = (1 << 20, 7)[seed // 2 % 2]
            seen["cases"] += 1
            for number in differences(case(seed, ranks), own, group):
                seen["differ"].append([seed, number])
        sharded._CHUNK = 1 << 20
        seen["large"] = differences(large_case(ranks), own, group)
        seen["sent"] = [
            [tensors, dtype, counted(tensors, dtype, own, group)]
            for tensors in (1, 40)
            for dtype in ("float32", "float64")
        ]
        sharded._WIDE = 1
        seen["wide"] = [differences(case(0, ranks), own, group), counted(3, "f4", own, group)]
        sharded._WIDE = 1 << 31
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(report, file)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What each rank of each group saw: {ranks: [a report per rank]}."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        start(go_through, rank, str(folder), told=folder / f"{rank}.told") for rank in range(WORLD)
    ]
    codes = [finish(process) for process in processes]
    assert not any(codes), [(folder / f"{rank}.told").read_text() for rank in range(WORLD)]
    read = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]
    return {
        ranks: [read[member][str(ranks)] for member in members] for ranks, members in GROUPS.items()
    }


@pytest.mark.parametrize("ranks", GROUPS)
def test_each_rank_selects_its_part_of_the_whole_selection(reports, ranks):
    for report in reports[ranks]:
        assert report["cases"] == len(SEEDS)
        assert report["differ"] == []
        assert report["large"] == []


def test_the_cases_hold_what_is_hard():
    """Ties divided among ranks, or left to a later rank; parts and tensors of nothing; extremes."""
    seen = dict.fromkeys(["divided", "later only", "empty part", "empty", "subnormal", "inf"], 0)
    for values, k, cuts in (tensor for seed in SEEDS for tensor in case(seed, WORLD)):
        seen["empty"] += len(values) == 0
        seen["empty part"] += len(set(cuts)) <= WORLD < len(values)
        if not 0 < k < len(values):
            continue
        bits = magnitudes(values)
        threshold = np.sort(bits)[-k]
        tied, chosen = np.flatnonzero(bits == threshold), sorted_choice(values, k)
        owners = [set(np.digitize(some, cuts[1:])) for some in (tied, np.intersect1d(tied, chosen))]
        seen["divided"] += len(owners[0]) > 1 and len(np.intersect1d(tied, chosen)) < len(tied)
        seen["later only"] += min(owners[1]) > 0
        seen["subnormal"] += 0 < threshold < magnitudes(np.finfo(values.dtype).tiny.reshape(1))[0]
        seen["inf"] += bool(np.isinf(values[chosen]).any())
    assert min(seen.values()) >= 5, seen


@pytest.mark.parametrize("ranks", GROUPS)
def test_what_is_sent_is_what_the_formula_says(reports, ranks):
    for report in reports[ranks]:
        for tensors, dtype, (sent, later) in report["sent"]:
            assert tuple(sent) == traffic(tensors, ranks, getattr(torch, dtype))
            assert later == 0  # everything is sent before the first index is asked for


@pytest.mark.parametrize("ranks", GROUPS)
def test_tensors_too_large_for_four_byte_counts(reports, ranks):
    for report in reports[ranks]:
        differ, (sent, _) = report["wide"]
        assert differ == []
        assert tuple(sent) == traffic(3, ranks, wide=True)


def test_the_formula():
    # TinyLlama's 201 tensors: 2048 + 1024 + 1024 counts of four bytes each, 3.3 MB.
    assert traffic(201, 8) == Traffic(4, 3_293_184, 201 * 8 * 4)
    assert traffic(1, 2, torch.float64) == Traffic(7, 4 * (3 * 2048 + 3 * 1024), 8)
    assert traffic(1, 1, wide=True) == Traffic(4, 8 * 4096, 8)


@pytest.mark.parametrize("ranks", GROUPS)
def test_parts_that_do_not_make_up_the_tensor_are_refused_on_all_ranks(reports, ranks):
    said = f"tensor 0: it has {2 * ranks + 1} entries, its parts have {2 * ranks}"
    assert [report["refusal"] for report in reports[ranks]] == [said] * ranks


@pytest.fixture(scope="module")
def alone():
    """The default group, of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@given(
    st.integers(0, 1).flatmap(
        lambda double: st.lists(
            st.lists(st.floats(allow_nan=False, width=64 if double else 32), max_size=30).map(
                lambda values: np.array(values, np.float64 if double else np.float32)
            ),
            min_size=1,
            max_size=3,
        )
    ),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_one_rank_alone_selects_as_a_sort_does(alone, tensors, data):
    counts = [data.draw(st.integers(0, len(values))) for values in tensors]
    made = [(v, k, [0, len(v)]) for v, k in zip(tensors, counts, strict=True)]
    assert differences(made, 0, None) == []


def test_no_tensors_send_nothing(alone):
    with Counted() as counter:
        assert list(largest_sharded([], [], [], None)) == []
    assert counter.calls == []


@pytest.mark.parametrize("k", [-1, 4])
def test_a_count_out_of_range_is_refused(alone, k):
    with pytest.raises(ValueError, match=rf"tensor 1: cannot select {k} of 3 entries"):
        largest_sharded([torch.ones(2), torch.ones(3)], [1, k], [2, 3], None)


@pytest.mark.parametrize("dtypes", [["float32", "float64"], ["bfloat16", "bfloat16"]])
def test_dtypes_that_cannot_be_compared_are_refused(alone, dtypes):
    parts = [torch.ones(2, dtype=getattr(torch, dtype)) for dtype in dtypes]
    with pytest.raises(ValueError, match=dtypes[-1]):
        largest_sharded(parts, [1, 1], [2, 2], None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [("cpu:gloo,cuda:gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda")],
)
def test_offloaded_moments_are_counted_where_the_group_can_send_from(monkeypatch, config, expected):
    monkeypatch.setattr(dist, "get_backend_config", lambda group: config)
    assert sharded._communicating(torch.device("cpu"), None) == torch.device(expected)
