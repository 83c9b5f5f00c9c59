"""Paths as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cl_mofo.errors import UserError


def expand(path: str, key: str) -> Path:
    """Expand environment variables and `~` in a path.

    Args:
        path: as it is written.
        key: the recipe key that it is the value of, named in errors.

    Raises:
        UserError: a variable is not set.
    """
    expanded = os.path.expandvars(os.path.expanduser(path))
    if missing := re.findall(r"\$\{?(\w+)", expanded):
        raise UserError(
            f"recipe key {key}: the environment variable {missing[0]} in '{path}' is not set; set "
            f"it, or give a path with --set {key}=PATH"
        )
    return Path(expanded)
