"""The step on a CPU in compiled code, `native.c`: whole, contiguous tensors, exact.

The library is taken only if a small step of it has the pure path's bits, so that no result depends
on whether there is one. `CL_MOFO_NATIVE=0` in the environment does without.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import subprocess
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from cl_mofo.optim.adamw import AdamW
from cl_mofo.optim.compiled import NativeError, load, torchs_library
from cl_mofo.optim.options import MOMENT_DTYPES
from cl_mofo.optim.pure import Pure
from cl_mofo.optim.selection import largest
from cl_mofo.optim.step import rule_of
from cl_mofo.optim.work import Work

VARIABLE = "CL_MOFO_NATIVE"
_MOST_RANGES = 256
_MOST_ENTRIES = 1 << 32
_ROOTS = {torch.float32: "vmsSqrt_64", torch.float64: "vmdSqrt_64"}

_log = logging.getLogger(__name__)


class Native:
    """Takes what lies whole and contiguous on a CPU, if there is a library for its dtype."""

    def __init__(self) -> None:
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def takes(self, item: Work) -> bool:
        """Tell whether the tensor lies whole in a row, and only selected entries decay."""
        param, grad, shards = item.param, item.grad, item.shards
        return (
            param.device.type == "cpu"
            and not hasattr(param, "to_local")
            and 0 < param.numel() < _MOST_ENTRIES
            and grad.dtype == param.dtype
            and all(t.is_contiguous() for t in (param, grad, *_moments(item)))
            and (
                item.counts is None
                or (
                    shards.ranks is None
                    and [piece.numel for piece in shards.pieces] == [param.numel()]
                    and item.options["decay"] != "all"
                )
            )
            and library(param.dtype) is not None
        )

    def step(self, items: Sequence[Work], discard: Tensor | None) -> None:
        """Take the step, one tensor after the other, each on all threads."""
        if discard is not None:  # another device's verdict, which only tensor operations can await
            Pure().step(items, discard)
            return
        most = max((_moments(i)[0].nbytes for i in items if i.counts is not None), default=0)
        if most > self._scratch.nbytes:
            self._scratch = torch.empty(most, dtype=torch.uint8)
        for item in items:
            step = item.state["step"].add_(1).item()
            k = item.param.numel() if item.counts is None else item.counts[0]
            compiled = library(item.param.dtype)
            assert compiled is not None  # or it would not have been taken
            compiled.step(
                item.param,
                item.grad,
                *_moments(item),
                rule_of(step, item.options),
                k,
                self._scratch,
            )
        # As every operation in place does, so that autograd refuses what was computed before.
        increment_version([item.param for item in items])


def _moments(item: Work) -> tuple[Tensor, Tensor]:
    return item.state["exp_avg"], item.state["exp_avg_sq"]


class _Tensor(ctypes.Structure):
    """`Tensor` of native.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("p", "g", "m", "v", "noted")),
        *((name, ctypes.c_int64) for name in ("n", "k", "ranges", "threads")),
        *((name, ctypes.c_double) for name in ("weight", "beta2", "rest2")),
        *((name, ctypes.c_double) for name in ("shrink", "step_size", "correction", "eps")),
        ("root", ctypes.c_void_p),
    )


class Library:
    """The compiled functions, for contiguous CPU tensors of one dtype.

    Args:
        functions: what native.c has, compiled for this dtype.
        root: address of the square root that torch takes; None for the processor's.
    """

    def __init__(self, functions: ctypes.CDLL, root: int | None) -> None:
        self._step, self._finite = functions.mofo_step, functions.mofo_finite
        self._step.restype, self._step.argtypes = None, [ctypes.POINTER(_Tensor)]
        self._finite.argtypes = [ctypes.POINTER(_Tensor)]
        self._root = root

    def finite(self, grad: Tensor) -> bool:
        """Tell whether no entry is a NaN or an infinity."""
        n = grad.numel()
        ranges, threads = _ranges()
        asked = _Tensor(g=grad.data_ptr(), n=n, ranges=ranges, threads=threads)
        return bool(self._finite(ctypes.byref(asked)))

    def step(
        self,
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        rule: AdamW,
        k: int,
        scratch: Tensor,
    ) -> None:
        """Update both moments, and move the `k` entries with the largest first one, in place.

        Args:
            param: with 1 to 2**32 - 1 entries, as `grad` and the moments.
            grad: of its dtype, finite.
            exp_avg: the first moment, float64 if the parameter is, else float32.
            exp_avg_sq: the second moment, like `exp_avg`.
            rule: this step's coefficients, as numbers.
            k: 1 to all of the entries.
            scratch: as many bytes as `exp_avg` at least; if all entries move, it may have none.
        """
        n = param.numel()
        self._step(
            _Tensor(
                param.data_ptr(),
                grad.data_ptr(),
                exp_avg.data_ptr(),
                exp_avg_sq.data_ptr(),
                scratch.data_ptr(),
                n,
                k,
                *_ranges(),
                1 - rule.beta1,
                rule.beta2,
                1 - rule.beta2,
                rule.shrink,
                rule.step_size,
                rule.correction,
                rule.eps,
                self._root,
            )
        )


def _ranges() -> tuple[int, int]:
    """Return into how many ranges a tensor's entries are cut, and how many threads take them."""
    threads = min(torch.get_num_threads(), _MOST_RANGES)
    if threads == 1:
        return 1, 1
    # Small tensors too: outside a parallel region MKL's square root would start threads of its own.
    # More than threads, so that one which the machine holds up leaves the rest to the others.
    return min(4 * threads, _MOST_RANGES), threads


@functools.cache
def library(dtype: torch.dtype) -> Library | None:
    """Return the library for parameters of this dtype, or None where the pure path has to do.

    It is made once in a process; that there is none is logged, once.
    """
    try:
        if os.environ.get(VARIABLE) == "0":
            raise NativeError(f"{VARIABLE} is 0")
        return _agreeing(dtype, load(dtype))
    except (NativeError, OSError, AttributeError, subprocess.SubprocessError) as error:
        _say_once(str(error))
        return None


@functools.cache
def _say_once(reason: str) -> None:
    _log.warning("MoFO takes its steps on a CPU without compiled code, which is slower: %s", reason)


def _agreeing(dtype: torch.dtype, functions: ctypes.CDLL) -> Library:
    """Return the library with the square root that gives torch's bits."""
    for root in (_torchs_root(MOMENT_DTYPES[dtype]), None):
        found = Library(functions, root)
        if _agrees(found, dtype):
            return found
    raise NativeError("its results have not the bits of torch's on this machine")


def _torchs_root(dtype: torch.dtype) -> int | None:
    """Return where MKL's square root is, which is not always the exact one; None without MKL."""
    path = torchs_library("libtorch_cpu.*")
    if path is None or not hasattr(torchs := ctypes.CDLL(str(path)), _ROOTS[dtype]):
        return None
    return ctypes.cast(getattr(torchs, _ROOTS[dtype]), ctypes.c_void_p).value


def _agrees(found: Library, dtype: torch.dtype) -> bool:
    """Take one step both ways, with enough entries for what rounds differently to show."""
    n, k = 20_011, 15_000
    generator = torch.Generator().manual_seed(0)
    p, g = (torch.randn(n, generator=generator).to(dtype) for _ in range(2))
    m, v = (torch.rand(n, generator=generator, dtype=MOMENT_DTYPES[dtype]) for _ in range(2))
    rule = AdamW.at(3, lr=0.3, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1)
    mine = [t.clone() for t in (p, m, v)]
    found.step(mine[0], g, mine[1], mine[2], rule, k, torch.empty_like(m))
    rule.update_moments(m, v, g.to(m.dtype), None)
    chosen = largest(m, k)
    p[chosen] = rule.move(p[chosen], m[chosen], v[chosen]).to(dtype)
    return all(map(torch.equal, mine, (p, m, v)))
