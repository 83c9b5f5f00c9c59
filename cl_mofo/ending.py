"""How the command line ends, where a launcher may have started it several times: who says why.

Each process ends with the same exit code, and one of them says why. What is found before they have
met (engine/ranks.py) all of a machine find alike, so its first says it. After that the first of all
speaks at once; another waits a little for its word, and speaks if none comes. Nothing here waits
for a process that may be gone: all has its bound.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from cl_mofo import stopping
from cl_mofo.errors import LostRankError, StoppedError

PATIENCE = 3.0
"""Seconds in which one process waits for another's word."""
GRACE = 25.0
"""Seconds from a signal to the end where a run is not yet, or no longer, able to save."""
CAN_GO_ON = 75
"""The exit code of a run that was asked to end and can go on: EX_TEMPFAIL of sysexits.h."""
TOLD = "cl_mofo/told"
"""The key in the processes' store under which it stands that one has said why the run ends."""


def place() -> tuple[int, int, int]:
    """Return rank, number of processes, and rank on this machine, as a launcher gave them.

    Without a launcher, or with variables that make no sense, this is the only process.
    """
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
    except (KeyError, ValueError):
        return 0, 1, 0
    return (rank, count, local) if 0 <= rank < count else (0, 1, 0)


_several = False
"""Whether this process is one of several that make a run together."""


def prepare() -> None:
    """Be quiet if another process speaks, and end well if the launcher or the user ends this."""
    global _several
    rank, count, _ = place()
    _several = count > 1
    for name in {"SIGTERM", "SIGUSR1"} & {*dir(signal)}:
        signal.signal(getattr(signal, name), _too_early)
    if not _several:
        return
    signal.signal(signal.SIGTERM, _terminated)
    # Python hears a signal only between its own steps, not while torch waits for other processes.
    heard, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    threading.Thread(target=_end_late, args=(heard,), daemon=True).start()
    if rank > 0:
        with open(os.devnull, "w") as nothing:
            sys.stdout.flush()
            os.dup2(nothing.fileno(), 1)


def _too_early(number: int, frame: FrameType | None) -> NoReturn:
    """Leave before there is anything to save; later `stopping.Stop` hears the signal."""
    told = signal.Signals(number).name
    raise StoppedError(f"stopped by {told} before the run began. The same command begins it")


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """End before there is anything to save; later `stopping.Stop` hears the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _store() is None:  # a process that has failed before it met this one has said so
        os._exit(1)
    raise LostRankError(
        "this run was ended from outside (SIGTERM), as a launcher does once one of its processes "
        "has ended. It can go on from its last checkpoint"
    )


def _end_late(heard: int) -> None:
    """End the process if a signal has not ended it in time.

    A run that will save and leave takes the time that it needs, unless it is asked again.
    """
    endings = {signal.SIGINT: 130, signal.SIGTERM: CAN_GO_ON}
    asked = 0.0
    while True:
        for number in os.read(heard, 1):
            if number not in endings:
                continue
            now = time.monotonic()
            if stopping.listening.is_set() and (not asked or now - asked < stopping.AGAIN):
                asked = asked or now
                continue
            time.sleep(GRACE)
            os._exit(endings[signal.Signals(number)])


def end(
    say: Callable[[str], None], code: int, *, alike: bool = False, named: bool = False
) -> NoReturn:
    """Say why the run ends, unless another process does, and end this one.

    Args:
        say: prints it, given what to put in front: nothing, or which rank this is.
        code: the exit code.
        alike: every process of this machine finds the same.
        named: say which rank this is even of the first.
    """
    rank, _, local = place()
    if not _several:
        say("")
        raise SystemExit(code)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    name = f"rank {rank}: " if rank > 0 or named else ""
    store = _store()
    if store is None:
        if alike and local > 0:
            # A launcher ends the others as soon as one has ended: leave the one that speaks time.
            time.sleep(PATIENCE)
        else:
            say("" if alike else name)
    elif not _ask(lambda: _told(store, 0.0 if rank == 0 else PATIENCE)):
        say(name)
        _ask(lambda: store.set(TOLD, "1"))
        if rank == 0:
            time.sleep(PATIENCE / 3)  # the store may end with this process, and others ask it
    sys.stdout.flush()
    sys.stderr.flush()
    # What torch would do at a usual exit can wait for processes that are gone.
    os._exit(code)


def leave() -> None:
    """Part from the other processes at a good end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def _store() -> Any:
    """Return the store that the processes met at, None before that."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store()


def _told(store: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not (told := bool(store.check([TOLD]))) and time.monotonic() < until:
        time.sleep(0.05)
    return told


def _ask(question: Callable[[], Any]) -> bool:
    """Return a store's answer; no if there is none, as the process that keeps it may hang."""
    answers = []

    def ask() -> None:
        try:
            answers.append(bool(question()))
        except RuntimeError:
            answers.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * PATIENCE)
    return any(answers)
