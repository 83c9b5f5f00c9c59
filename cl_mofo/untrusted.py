"""What others may have written: files that are none, JSON that says two things, text that acts.

Data, recipes, run folders, downloads and model output are text. Nothing in them may hang the
process, fill its memory before it was asked to, or speak to a terminal.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

MIB = 2**20


def printable(text: str) -> str:
    r"""Return text with everything that a terminal acts on written as an escape, such as `\x1b`.

    That is control characters but the line break, what changes the direction of text or is not
    seen, line separators that are none to `print`, lone surrogates and unassigned characters. Every
    letter, sign and space of any script stays.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" else _escaped(c)
        for c in text
    )


def shortened(text: object, most: int = 80) -> str:
    """Return what a message quotes: printable, on one line, and of at most so many characters."""
    shown = printable(str(text)[: most + 1]).replace("\n", "\\n")
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, as `object_pairs_hook`, whose keys are given once each.

    Raises:
        ValueError: a key is given twice, of which Python would take the last and others the first.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:40]!r} is given twice in one object")
        found[key] = value
    return found


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading, and nothing that could block or never end.

    Raises:
        OSError: as `open` does; or it is a pipe, a socket or a device.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return file


def read_bytes(path: str | Path, most: int) -> bytes:
    """Return a file's bytes.

    Args:
        path: a regular file.
        most: the bytes it may have.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(
            errno.EFBIG, f"larger than the {most / MIB:g} MiB that it may have", str(path)
        )
    return data
