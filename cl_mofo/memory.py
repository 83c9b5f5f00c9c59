"""Out of memory: one message that says how much was missing, and what to change.

What helps depends on what was under way, so each such place has a context `explained` of its own,
with the advice that fits it (`cl_mofo.remedies`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from cl_mofo.errors import OutOfMemoryError

_SIZE = r"([\d.]+) ?(bytes|[KMGTPE]iB)"
_ASKED = re.compile(rf"(?:[Tt]ri?ed to allocate|Unable to allocate) {_SIZE}")
_DEVICE = re.compile(r"GPU \d+")
# torch <= 2.0 gives the sizes in brackets, later releases in sentences (one with a typing error).
_TOTAL = re.compile(rf"total capaci?ty of {_SIZE}|{_SIZE} total capacity")
_FREE = re.compile(rf"of which {_SIZE} is free|{_SIZE} free")
_OURS = re.compile(rf"this process has {_SIZE} memory in use")
_IN_PIECES = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")
_SETTING = re.compile(r"try setting (PYTORCH_\w*ALLOC_CONF=\S+)")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SIGNS = ("DefaultCPUAllocator", "CUDA out of memory", "CUDA error: out of memory", "ALLOC_FAILED")
"""What a `RuntimeError` says that is about memory."""


HOST = "the host"


@dataclass(frozen=True)
class Shortage:
    """What an error says of the memory that was missing.

    Args:
        device: `GPU 0`, or `the host`.
        asked: bytes that could not be had; None if the error does not say.
        free: bytes that were there; None if nothing says. On the host, what this process may take
            afterwards; None if that would be enough by then.
        total: bytes of the device; None if nothing says.
        others: bytes that other processes hold on the GPU.
        in_pieces: bytes that torch has reserved there but cannot use as one block.
        setting: the environment variable with which torch could.
    """

    device: str = HOST
    asked: int | None = None
    free: int | None = None
    total: int | None = None
    others: int = 0
    in_pieces: int = 0
    setting: str = ""

    def __str__(self) -> str:
        if self.asked is None:
            return f"{self.device} has no more"
        text = f"{self.device} was asked for {size(self.asked)}"
        if self.free is None:
            return text
        text += f" and has {size(self.free)}"
        text += f" of {size(self.total)} free" if self.total is not None else " free"
        if self.asked > self.free:
            text += f": short by {size(self.asked - self.free)}"
        if self.others:
            text += f"; other processes hold {size(self.others)} of it"
        if self.setting and self.free + self.in_pieces >= self.asked:
            text += (
                f"; torch has {size(self.in_pieces)} more in pieces, so {self.setting} in the "
                f"environment may be enough"
            )
        return text


Advice = Callable[[Shortage], list[str]]
"""What to change, given what was missing: recipe keys with values, each enough for a try."""


@contextmanager
def explained(doing: str, advice: Advice) -> Iterator[None]:
    """Say how much memory was missing and what to change, if it runs out in this context.

    Args:
        doing: what is under way, as in "while the optimizer steps".
        advice: asked only then.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        missing = shortage(error)
        if missing is None:
            raise
        ways = [
            *advice(missing),
            f"more memory on {missing.device}, or a smaller model (model.path)",
        ]
        raise OutOfMemoryError(
            f"out of memory while {doing}: {missing}. Change one or more: {'; '.join(ways)}"
        ) from error


def size(count: float) -> str:
    """Return bytes as text, such as `1.2 GiB`."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.{0 if unit == 0 or count >= 100 else 1}f} {_UNITS[unit]}"


def shortage(error: BaseException) -> Shortage | None:
    """Read an error of torch's, numpy's or Python's; None if it is not about memory."""
    text = str(error)
    signs = any(sign in text for sign in _SIGNS) or text == "std::bad_alloc"
    if not (signs or isinstance(error, torch.OutOfMemoryError | MemoryError)):
        return None
    if isinstance(error, torch.OutOfMemoryError) or "CUDA" in text:
        return _of_gpu(text)
    asked, free = _first(_ASKED, text), _may_take()
    given_back = asked is not None and free >= asked  # by what was under way, as it ended
    return Shortage(asked=asked, free=None if given_back else free)


def _of_gpu(text: str) -> Shortage:
    free, total, ours = (_first(pattern, text) for pattern in (_FREE, _TOTAL, _OURS))
    others = 0
    if free is not None and total is not None and ours is not None:
        others = total - free - ours
        others = others if others > total // 20 else 0  # less is the driver's, and rounding
    device, setting = _DEVICE.search(text), _SETTING.search(text)
    return Shortage(
        device[0] if device else "the GPU",
        _first(_ASKED, text),
        free,
        total,
        others,
        _first(_IN_PIECES, text) or 0,
        setting[1] if setting else "",
    )


def _first(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    if found is None:
        return None
    number, unit = (group for group in found.groups() if group is not None)
    return int(float(number) * 1024 ** _UNITS.index(unit))


def _may_take() -> int:
    """Return how many bytes of the host's memory this process could still take."""
    available: int = psutil.virtual_memory().available
    if not hasattr(psutil, "RLIMIT_AS"):
        return available
    process = psutil.Process()
    limit: int = process.rlimit(psutil.RLIMIT_AS)[0]
    if limit == psutil.RLIM_INFINITY:
        return available
    taken: int = process.memory_info().vms
    return max(0, min(available, limit - taken))
