"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from cl_mofo.errors import UserError


def expand(path: str) -> Path:
    """Expand environment variables and `~` in a path.

    Raises:
        UserError: a variable is not set.
    """
    expanded = os.path.expandvars(os.path.expanduser(path))
    if "$" in expanded:
        raise UserError(f"path '{path}': an environment variable in it is not set")
    return Path(expanded)
