"""The exceptions whose text is meant for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: a recipe, a path, a data file, a name.

    Its text says what was found, where, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """


class TrainingError(Exception):
    """Training cannot go on: its text says where it stopped, why, and what to try.

    The command line prints it without a traceback and exits with code 1.
    """


class NotSavedError(Exception):
    """A checkpoint could not be written: its text says why. Training can go on."""


class StoppedError(BaseException):
    """The run was asked to stop, has saved what it needs to go on, and did.

    As KeyboardInterrupt it is no `Exception`: a signal may come within any library's `try`. The
    command line prints its text without a traceback and exits with code 75.
    """


class OutOfMemoryError(TrainingError):
    """Memory ran out: its text says where, how much was missing, and what to change."""


class NotWrittenError(TrainingError):
    """A file of the run's folder could not be written: its text says which, and why."""


class LostRankError(Exception):
    """Another process of the run ended, so this one ends too.

    The command line prints it without a traceback and exits with code 1.
    """


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, whatever its case, or None if none is near."""
    lowered = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return lowered[found[0]] if found else None


def hint(name: str | None) -> str:
    """Return `` (did you mean 'name'?)``, or an empty string for None."""
    return "" if name is None else f" (did you mean '{name}'?)"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint for the known name most like `name`."""
    return hint(closest(name, known))
