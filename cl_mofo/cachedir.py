"""The user's folder for what can be made again: it may vanish at any time, and nothing is missing.

It is `$CL_MOFO_CACHE`, or `cl-mofo` in `$XDG_CACHE_HOME` or `~/.cache`; `CL_MOFO_CACHE=off` keeps
nothing anywhere.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

VARIABLE = "CL_MOFO_CACHE"
OFF = "off"


def cache_folder(kind: str) -> Path | None:
    """Return a folder of the user's own, which exists; None if there can be none.

    Args:
        kind: what it holds: the name of the folder in the cache.
    """
    chosen = os.path.expanduser(os.environ.get(VARIABLE, ""))
    if chosen == OFF:
        return None
    try:
        folder = (Path(chosen) if chosen else _home()) / kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # the second where nobody knows a home
        return None
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    owned = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return folder if owned and not others_write else None


def _home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "cl-mofo"


@functools.cache
def source_digest() -> str:
    """Return the SHA-256 of this package's own source: what one version kept is not another's."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def used(path: Path) -> None:
    """Note that a file of the cache was used just now, so that `trim` takes others first."""
    with suppress(OSError):
        os.utime(path)


def trim(folder: Path, most: int) -> None:
    """Delete files of a folder until it holds at most so many bytes, the longest unused first."""
    with suppress(OSError):
        found = [(entry.stat(), entry) for entry in os.scandir(folder) if entry.is_file()]
        held = sum(status.st_size for status, _ in found)
        for status, entry in sorted(found, key=lambda pair: pair[0].st_mtime):
            if held <= most:
                break
            os.unlink(entry)
            held -= status.st_size
