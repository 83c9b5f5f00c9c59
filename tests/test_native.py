"""The compiled step: its selection beside a sort, its making, and what is done without it."""

import ctypes
import logging
import math
import os
import shutil
import stat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cl_mofo.optim import MoFO, compiled, native
from cl_mofo.optim.adamw import AdamW
from cl_mofo.optim.reference import reference_step
from tests.test_selection import KINDS, large

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# The first moment stays as it is, and what moves is halved.
HALVE = AdamW(beta1=1.0, beta2=0.9, eps=1.0, shrink=0.5, step_size=0.0, correction=1.0)

compiler = pytest.mark.skipif(
    not any(map(shutil.which, compiled.COMPILERS)), reason="there is no C compiler"
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache of the test's own, and nothing known of any library."""
    monkeypatch.setenv("CL_MOFO_CACHE", str(tmp_path / "cache"))
    native.library.cache_clear()
    native._say_once.cache_clear()
    yield tmp_path / "cache" / "native"
    native.library.cache_clear()
    native._say_once.cache_clear()


def moved(first_moment, k, ranges, dtype):
    """Return where the compiled step moves something, given the first moment it comes to."""
    param = torch.ones(len(first_moment), dtype=dtype)
    grad, m = torch.zeros_like(param), first_moment.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_ranges", lambda: (ranges, min(ranges, 2)))
        native.library(dtype).step(param, grad, m, torch.zeros_like(m), HALVE, k, m.clone())
    assert torch.equal(m, first_moment)
    assert set(param.tolist()) <= {0.5, 1.0}
    return param == 0.5


def sorted_choice(values, k):
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.abs().argsort(descending=True, stable=True)[:k]] = True
    return mask


def crowded(seed):
    """Most of what moves lies a few keys above where the sample has its band end."""
    drawn = torch.Generator().manual_seed(seed)
    n, k = 40_960, 4096
    keys = torch.full((n,), 0x30000000, dtype=torch.int32)
    sample = torch.arange(0, n, 11)
    keys[sample] = torch.randint(0x3F000000, 0x3F400000, sample.shape, generator=drawn).int()
    rank = k * len(sample) / n
    end = keys[sample].sort(descending=True).values[math.ceil(rank - 4 * rank**0.5 - 8) - 1]
    others = torch.ones(n, dtype=torch.bool).index_fill_(0, sample, False).nonzero()[:, 0]
    above = others[: k - 1 - int((keys[sample] >= end).sum())]
    keys[above] = end + torch.randint(20, above.shape, generator=drawn).int()
    keys[others[len(above) : len(above) + 50]] = end - 1
    return keys.view(torch.float32), k


@compiler
@pytest.mark.parametrize("seed", range(20))
def test_what_crowds_above_the_bands_end_moves(seed):
    values, k = crowded(seed)
    assert torch.equal(moved(values, k, 4, torch.float32), sorted_choice(values, k))


def misleading(kind):
    """What the sample sees of it is unlike the rest: every 73rd of 300007 entries."""
    values = large("continuous")
    match kind:
        case "sample is high":
            values[::73] += 10
        case "sample is low":
            values[::73] = 0
        case "sample is tied":
            values[::73] = 1.96
        case _:
            values = large(kind)
    return values


@compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "sample is high", "sample is low", "sample is tied"])
def test_it_moves_what_a_sort_puts_first(kind, dtype):
    values = misleading(kind).to(native.MOMENT_DTYPES[dtype])
    for k, ranges in ((1, 1), (4_000, 3), (15_001, 1), (200_000, 2), (300_006, 1)):
        assert torch.equal(moved(values, k, ranges, dtype), sorted_choice(values, k))


@compiler
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_it_moves_what_a_sort_puts_first_at_any_size(data):
    # A block has 2048 entries, and from 16384 on there is a sample.
    size = data.draw(st.sampled_from([1, 2, 15, 17, 2047, 2049, 4097, 16_383, 16_384, 20_001]))
    dtype = data.draw(st.sampled_from(DTYPES))
    few = torch.tensor(data.draw(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=9)))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    values = few[torch.randint(len(few), (size,), generator=seed)]
    if data.draw(st.booleans()):
        values = values * torch.rand(size, generator=seed)
    values = values.to(native.MOMENT_DTYPES[dtype])
    k = data.draw(st.integers(1, size))
    chosen = moved(values, k, data.draw(st.integers(1, 4)), dtype)
    assert torch.equal(chosen, sorted_choice(values, k) if k < size else torch.full((size,), True))


@compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fraction", [0.05, 0.2, None])
@pytest.mark.parametrize("faint", [1, 1e-30, 0])
def test_on_several_threads_it_is_the_reference(dtype, fraction, faint, monkeypatch):
    monkeypatch.setattr(native, "_ranges", lambda: (5, 3))
    generator = torch.Generator().manual_seed(0)
    shape, options = (211, 503), {"lr": 0.01, "weight_decay": 0.1, "update_fraction": fraction}
    expected = torch.randn(shape, generator=generator).to(dtype)
    expected[:, 50:100] = 0  # there a small move shows
    param = torch.nn.Parameter(expected.clone())
    m = v = torch.zeros(shape, dtype=native.MOMENT_DTYPES[dtype])
    optimizer = MoFO([param], **options)
    for step in range(1, 5):
        grad = torch.randn(shape, generator=generator)
        grad[:, 50:] *= faint  # of 1e-30 the square is 0 in float32
        param.grad = grad.to(dtype)
        optimizer.step()
        expected, m, v = reference_step(expected, param.grad, m, v, step, **options)
        assert torch.equal(param, expected)
        assert torch.equal(optimizer.state[param]["exp_avg"], m)
        assert torch.equal(optimizer.state[param]["exp_avg_sq"], v)


@compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", [0, 2047, 2048, 9_999])
def test_it_finds_what_is_not_finite(dtype, place):
    grad = torch.full((10_000,), torch.finfo(dtype).max, dtype=dtype)
    library = native.library(dtype)
    assert library.finite(grad)
    assert library.finite(-grad)
    for bad in (torch.nan, torch.inf, -torch.inf):
        spoilt = grad.clone()
        spoilt[place] = bad
        assert not library.finite(spoilt)


class _Made(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _tensor(t)}
        result = func(*args, **(kwargs or {}))
        for t in filter(_tensor, tree_leaves(result)):
            if t.untyped_storage().data_ptr() not in held:
                self.bytes = getattr(self, "bytes", 0) + t.untyped_storage().nbytes()
        return result


def _tensor(value):
    return isinstance(value, torch.Tensor)


@compiler
def test_a_step_makes_nothing_of_the_size_of_a_tensor():
    params = [torch.nn.Parameter(torch.randn(n)) for n in (70_000, 90_000)]
    optimizer = MoFO(params, lr=0.1, update_fraction=0.2)
    for p in params:
        p.grad = torch.randn_like(p)
    made = _Made()
    with made:
        optimizer.step()
    # The first step makes two moments of each, and scratch of the largest.
    assert 0 <= made.bytes - (2 * 160_000 + 90_000) * 4 < 1000
    made.bytes = 0
    with made:
        optimizer.step()
    assert made.bytes < 1000


def steps(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.randn(50, 40, generator=generator).to(dtype))
    optimizer = MoFO([param], lr=0.1, update_fraction=0.1)
    for _ in range(3):
        param.grad = torch.randn(50, 40, generator=generator).to(dtype)
        optimizer.step()
    return param.detach()


def without_compilers(monkeypatch, folder):
    monkeypatch.setenv("PATH", str(folder))
    return "no C compiler is found (gcc, cc, clang)"


def with_a_failing_compiler(monkeypatch, folder):
    fake = folder / "gcc"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "out of order" >&2; exit 1; }\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return "gcc cannot compile it: out of order"


def told_not_to(monkeypatch, folder):
    monkeypatch.setenv(native.VARIABLE, "0")
    return "CL_MOFO_NATIVE is 0"


@pytest.mark.parametrize("why", [without_compilers, with_a_failing_compiler, told_not_to])
def test_without_it_the_result_is_the_same_and_one_line_says_so(
    why, fresh, monkeypatch, tmp_path, caplog
):
    expected = [steps(dtype) for dtype in DTYPES[:2]]
    native.library.cache_clear()
    native._say_once.cache_clear()
    shutil.rmtree(fresh, ignore_errors=True)
    caplog.clear()
    reason = why(monkeypatch, tmp_path)
    with caplog.at_level(logging.WARNING):
        found = [steps(dtype) for dtype in DTYPES[:2]]
    assert all(map(torch.equal, found, expected))
    (record,) = caplog.records
    assert reason in record.getMessage()


@compiler
def test_it_is_compiled_once(fresh, monkeypatch):
    native.library(torch.float32)
    (made,) = fresh.iterdir()
    assert not made.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    native.library.cache_clear()
    monkeypatch.setattr(compiled, "_compile", None)
    assert native.library(torch.float32) is not None


@compiler
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b""])
def test_a_broken_library_is_made_anew(fresh, damage, caplog):
    assert native.library(torch.bfloat16) is not None
    (made,) = fresh.iterdir()
    whole = made.read_bytes()
    made.unlink()  # the process has it loaded: another file must come in its place
    made.write_bytes(damage(whole))
    native.library.cache_clear()
    assert native.library(torch.bfloat16) is not None
    assert len(made.read_bytes()) == len(whole)
    assert [path.name for path in fresh.iterdir()] == [made.name]
    assert not caplog.records


@compiler
def test_without_a_cache_nothing_is_left(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("CL_MOFO_CACHE", "off")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert native.library(torch.float16) is not None
    assert list(tmp_path.iterdir()) == []


@compiler
def test_a_library_with_other_bits_is_not_used(fresh, monkeypatch, tmp_path, caplog):
    source = (compiled.files("cl_mofo.optim") / "native.c").read_text()
    assert source.count("* shrink") == 1
    (tmp_path / "native.c").write_text(source.replace("* shrink", "* shrink * 1.0000001f"))
    monkeypatch.setattr(compiled, "files", lambda package: tmp_path)
    assert native.library(torch.float32) is None
    assert "not the bits of torch's" in caplog.text


def test_a_library_of_something_else_is_not_used(fresh, monkeypatch, caplog):
    monkeypatch.setattr(native, "load", lambda dtype: ctypes.CDLL(None))
    assert native.library(torch.float32) is None
    assert "without compiled code" in caplog.text
