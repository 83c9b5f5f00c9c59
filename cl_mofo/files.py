"""Files that are there whole or not at all, and that tell whether they are as they were written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cl_mofo.untrusted import MIB, open_regular, read_bytes

PARTIAL = ".partial"
"""What the name of a file or folder that is not complete ends with."""


MOST_BYTES = 256 * MIB
"""Of a file of JSON with its checksum."""


class DamagedError(Exception):
    """What was read is not what was written: its text says which file, and what is wrong."""


def synchronise(path: Path) -> None:
    """Let what was written to a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every system can do so for folders
            raise
    finally:
        os.close(descriptor)


def synchronise_all(folder: Path) -> None:
    """Let all files below a folder, and their names, reach the disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            synchronise(path)


def write_whole(path: Path, content: Iterable[bytes]) -> None:
    """Write a file whole or not at all, whatever happens meanwhile; its folder is made if need be.

    Args:
        path: the file.
        content: its bytes, in pieces.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk its bytes are what others lack
        raise


def digest(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    with open_regular(path) as file:
        content: Any = file
        return hashlib.file_digest(content, "sha256").hexdigest()


def to_json(value: Any) -> bytes:
    """Return a value as JSON in UTF-8; lone surrogates, which UTF-8 has not, stay escaped."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def from_json(content: bytes, where: str) -> Any:
    """Return the value that JSON text stands for.

    Raises:
        DamagedError: it is no JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is no JSON ({error})") from error


def checked_line(value: Mapping[str, Any]) -> bytes:
    """Return JSON with its own checksum, on one line."""
    content = to_json(value)
    checksum = hashlib.sha256(content).hexdigest()
    return b'{"sha256":"' + checksum.encode() + b'","content":' + content + b"}"


def read_line(line: bytes, where: str) -> dict[str, Any]:
    """Return what `checked_line` was given.

    Raises:
        DamagedError: it is not as it was.
    """
    found = from_json(line, where)
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, dict):
        raise DamagedError(f"{where} is not as it was written")
    try:
        intact = hashlib.sha256(to_json(content)).hexdigest() == found.get("sha256")
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise DamagedError(f"{where} is not as it was written: its checksum differs")
    return content


def write_checked(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with its own checksum.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(path, [checked_line(value) + b"\n"])


def read_checked(path: Path) -> dict[str, Any]:
    """Return what `write_checked` wrote.

    Raises:
        DamagedError: the file is not there, cannot be read, or is not as it was written.
    """
    try:
        return read_line(read_bytes(path, MOST_BYTES), path.name)
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from error
