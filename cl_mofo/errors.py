"""The one exception that means: the user can mend this."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: a recipe, a path, a data file, a name.

    Its text says what was found, where, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the known name most like `name`, or an empty string."""
    known = list(known)
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not found:
        lowered = {k.lower(): k for k in known}
        found = [
            lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
        ]
    return f" (did you mean '{found[0]}'?)" if found else ""
