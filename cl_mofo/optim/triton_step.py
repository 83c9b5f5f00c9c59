"""The step on a GPU: Triton kernels, a handful of launches for all tensors together.

1. `count_step`: the step counters and what depends on them
2. `update_moments`: both moments, and a histogram of |m|, fine around the last step's threshold
3. `narrow`: the bin that holds the k-th largest
4. `move_above`: what lies above that bin moves, what lies in it is listed
5. `count_candidates`, `narrow`, eight times: the k-th largest itself, ties by index
6. `move_candidates`: the rest moves

Parameters and second moments of entries that stay are neither read nor written. The host waits for
nothing, and in steady state only a table of addresses and one of options go to the device, from
pinned memory. The scratch is at most half of the largest tensor's float32s in candidates, and 1 KB
for each tensor.

The selection is that of `reference.py`, exactly, for the moments as they are; moments and moves
differ from torch's by roundings, for a GPU multiplies and adds in one. Subnormals are kept. For a
pair of dtypes the kernels are taken only where small steps of theirs are the pure path's.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from cl_mofo.optim import triton_kernels as kernels
from cl_mofo.optim import triton_layout as layout
from cl_mofo.optim.options import MOMENT_DTYPES
from cl_mofo.optim.pure import Pure
from cl_mofo.optim.shards import shards_of
from cl_mofo.optim.step import new_state
from cl_mofo.optim.work import Work
from cl_mofo.transfer import to_device

_log = logging.getLogger(__name__)

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_MOST = 1 << 30
"""Entries of a tensor: its offsets are 32 bits wide."""


@dataclass(frozen=True)
class Blocks:
    """How the work is cut up.

    Args:
        block: entries that a program handles at a time, a power of two.
        part: blocks of a tensor for which there is one more program to look at its candidates.
        listed: share of a tensor's entries that there is room to list as candidates.
        warps: of 32 threads in a program.
    """

    block: int = 4096
    part: int = 64
    listed: float = 1 / 64
    warps: int = 16


class TritonStep:
    """Takes whole, contiguous float32, bfloat16 and float16 tensors.

    Args:
        kind: of the devices whose tensors it takes: "cuda", or "cpu" in Triton's interpreter.
        blocks: how the work is cut up.
    """

    def __init__(self, kind: str = "cuda", blocks: Blocks | None = None) -> None:
        self._kind = kind
        self._blocks = blocks or Blocks()
        self._plans: dict[tuple[torch.device, torch.dtype, torch.dtype], _Plan] = {}

    def takes(self, item: Work) -> bool:
        """Tell whether the kernels know all that there is about a parameter."""
        options, pieces = item.options, item.shards.pieces
        tensors = (item.param, item.grad, item.state["exp_avg"], item.state["exp_avg_sq"])
        return (
            item.param.device.type == self._kind
            and item.shards.ranks is None
            and [piece.numel for piece in pieces] == [item.param.numel()]
            and 0 < item.param.numel() <= _MOST
            and (options["decay"] == "selected" or not options["weight_decay"])
            and MOMENT_DTYPES[item.param.dtype] == torch.float32
            and all(_is_plain(tensor, item.param.device) for tensor in tensors)
            and item.state["step"].device == item.param.device
            and _works(item.param.device, item.param.dtype, item.grad.dtype)
        )

    def step(self, items: Sequence[Work], discard: Tensor | None) -> None:
        """Take the step; tensors of one device and one pair of dtypes together."""
        kinds: dict[tuple[torch.device, torch.dtype, torch.dtype], list[Work]] = {}
        for item in items:
            key = (item.param.device, item.param.dtype, item.grad.dtype)
            kinds.setdefault(key, []).append(item)
        for key, alike in kinds.items():
            sizes = [item.param.numel() for item in alike]
            plan = self._plans.get(key)
            if plan is None or plan.sizes != sizes:
                plan = self._plans[key] = _Plan(sizes, key[0], self._blocks)
            with torch.cuda.device_of(alike[0].param):  # type: ignore[no-untyped-call]
                plan.step(alike, discard)
            torch.autograd.graph.increment_version([item.param for item in alike])


def _is_plain(tensor: Tensor, device: torch.device) -> bool:
    """Tell whether an address says all of a tensor."""
    known = tensor.dtype in _TYPES and tensor.layout == torch.strided and tensor.device == device
    return known and tensor.is_contiguous() and not hasattr(tensor, "to_local")


@functools.cache
def _works(device: torch.device, param_type: torch.dtype, grad_type: torch.dtype) -> bool:
    """Tell whether the kernels compile and are right there; that they are not is logged, once."""
    try:
        for aligned in (True, False):
            ours, theirs = (_trial(device, param_type, grad_type, aligned) for _ in range(2))
            path = TritonStep(device.type)
            for _ in range(2):  # the second with a guess of where the selection ends
                path.step(ours, None)
                Pure().step(theirs, None)
            for found, right in zip(ours, theirs, strict=True):
                torch.testing.assert_close(found.state, right.state)
                torch.testing.assert_close(found.param, right.param)
                if not torch.equal(found.param == 1, right.param == 1):
                    raise AssertionError("entries change that are not selected")
    except Exception as error:  # of the compiler, the linker or the driver, of whatever class
        types = " and ".join(str(each).removeprefix("torch.") for each in (param_type, grad_type))
        _log.warning(
            "MoFO takes its steps on %s, for %s gradients, without Triton, which is slower: %s: %s",
            device,
            types,
            type(error).__name__,
            error,
        )
        return False
    return True


def _trial(
    device: torch.device, param_type: torch.dtype, grad_type: torch.dtype, aligned: bool
) -> list[Work]:
    """Return ones whose moments are exact in two steps, and whose moves are far from nothing.

    Of the first tensor, a block and a part, many gradients are tied at the threshold, more than can
    be listed; of the second few are.
    """
    works = []
    for size, different in ((5000, 9), (300, 150)):
        param = torch.ones(size + 1, dtype=param_type, device=device)
        param = param[:-1] if aligned else param[1:]
        drawn = torch.arange(size, device=device) * 7 % different + 1
        grad = torch.where(drawn % 2 == 0, drawn, -drawn).to(grad_type)
        options = {"lr": 1.0, "betas": (0.5, 0.75), "eps": 1e-8, "weight_decay": 0.125}
        options |= {"update_fraction": 0.3, "decay": "selected"}
        works.append(Work(options, param, grad, shards_of("trial", param), new_state(param)))
    return works


class _Plan:
    """The scratch and the grids for tensors of certain sizes, of one device and pair of dtypes."""

    def __init__(self, sizes: list[int], device: torch.device, blocks: Blocks) -> None:
        self.sizes = sizes
        self._device = device
        self._blocks = blocks
        cut = [-(-size // blocks.block) for size in sizes]
        share = min(blocks.listed, max(sizes) / 2 / sum(sizes))  # a candidate is 8 bytes
        room = [int(share * size) for size in sizes]
        self._fixed = list(zip(_starts(cut), _starts(room), room, strict=True))
        rows = len(sizes)
        self._coefficients = _zeros(rows, layout.COEFFICIENTS, torch.float32, device)
        self._state = _zeros(rows, layout.STATES, torch.int64, device)
        self._histogram = _zeros(rows, layout.BINS, torch.int32, device)
        self._candidates = torch.empty(sum(room), dtype=torch.int64, device=device)
        self._never = torch.zeros((), dtype=torch.bool, device=device)
        tensor_of = [number for number, count in enumerate(cut) for _ in range(count)]
        parts = [row for number, count in enumerate(cut) for row in _parts(number, count, blocks)]
        self._tensor_of = to_device(torch.tensor(tensor_of, dtype=torch.int32), device)
        self._parts = to_device(torch.tensor(parts, dtype=torch.int32), device)

    def step(self, items: Sequence[Work], discard: Tensor | None) -> None:
        rows = [_row(item) + fixed for item, fixed in zip(items, self._fixed, strict=True)]
        table = to_device(torch.tensor(rows), self._device)
        options = torch.tensor([_options(item) for item in items], dtype=torch.float64)
        options = to_device(options, self._device)
        discard = self._never if discard is None else to_device(discard, self._device)
        aligned = all(address % 16 == 0 for row in rows for address in row[:4])
        param_type, grad_type = _TYPES[items[0].param.dtype], _TYPES[items[0].grad.dtype]

        tensors, block, warps = len(items), self._blocks.block, self._blocks.warps
        state, histogram = self._state, self._histogram
        moves = (table, self._coefficients, state, self._candidates)
        kernels.count_step[-(-tensors // 128),](
            table, options, self._coefficients, discard, tensors, BLOCK=128
        )
        kernels.update_moments[len(self._tensor_of),](
            table,
            self._coefficients,
            state,
            histogram,
            self._tensor_of,
            discard,
            GRAD_TYPE=grad_type,
            BLOCK=block,
            ALIGNED=aligned,
            num_warps=warps,
        )
        kernels.narrow[tensors,](table, state, histogram, discard, FIRST=True)
        kernels.move_above[len(self._tensor_of),](
            *moves,
            self._tensor_of,
            discard,
            PARAM_TYPE=param_type,
            BLOCK=block,
            ALIGNED=aligned,
            num_warps=warps,
        )
        for _ in range(layout.ROUNDS):
            kernels.count_candidates[len(self._parts),](
                table,
                state,
                histogram,
                self._candidates,
                self._parts,
                discard,
                BLOCK=block,
                num_warps=warps,
            )
            kernels.narrow[tensors,](table, state, histogram, discard, FIRST=False)
        kernels.move_candidates[len(self._parts),](
            *moves, self._parts, discard, PARAM_TYPE=param_type, BLOCK=block, num_warps=warps
        )


def _row(item: Work) -> tuple[int, ...]:
    """Return the first columns of a tensor's row in the table."""
    state, numel = item.state, item.param.numel()
    tensors = (item.param, item.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
    chosen = numel if item.counts is None else item.counts[0]
    return (*(tensor.data_ptr() for tensor in tensors), numel, chosen)


def _options(item: Work) -> tuple[float, ...]:
    options = item.options
    return (options["lr"], *options["betas"], options["eps"], options["weight_decay"])


def _starts(lengths: Sequence[int]) -> Iterator[int]:
    """Yield where each of consecutive runs begins."""
    start = 0
    for length in lengths:
        yield start
        start += length


def _parts(number: int, blocks: int, cut: Blocks) -> list[tuple[int, int, int]]:
    of = -(-blocks // cut.part)
    return [(number, part, of) for part in range(of)]


def _zeros(rows: int, columns: tl.constexpr, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((rows, columns.value), dtype=dtype, device=device)
