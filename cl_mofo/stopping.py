"""Being asked to stop by a signal: the run goes on to where it can be saved, and leaves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cl_mofo.errors import StoppedError

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
ALONE = 5.0
"""Seconds after which one of several ranks that was asked to stop waits for no other."""


AGAIN = 2.0
"""Seconds within which a signal is the same request: a launcher passes on what a process has also
had from a scheduler or a terminal."""


listening = threading.Event()
"""Set while a signal is heard by a run that will save and leave."""


class Stop:
    """Whether a signal has asked to stop. The first is remembered, a second stops at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._heard = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals for a while; outside the main thread, where none arrive, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        # What was to be ignored, as by nohup or a shell's background job, is ignored on.
        heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._hear)
        listening.set()
        try:
            yield
        finally:
            listening.clear()
            for number in heard:
                signal.signal(number, before[number])

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._heard = number, now
        elif now - self._heard > AGAIN:
            raise stopped(number, "at once, the second time")

    @property
    def overdue(self) -> bool:
        """Whether it is so long ago that other ranks must have heard of it too, or never will."""
        return bool(self.signal) and time.monotonic() - self._heard > ALONE


def stopped(number: int, how: str) -> BaseException:
    """Return what is raised where a run leaves on a signal."""
    if number == signal.SIGINT:
        return KeyboardInterrupt(f"interrupted {how}")
    return StoppedError(f"stopped by {signal.Signals(number).name} {how}")
