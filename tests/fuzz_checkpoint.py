"""Checkpoints as others may have changed them, and what takes them back into a loop."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from cl_mofo.checkpoint.store import INDEX, Store
from cl_mofo.engine import SingleEngine
from cl_mofo.engine.ranks import Ranks
from cl_mofo.files import DamagedError, checked_line, digest, read_checked
from cl_mofo.loop import Loop
from cl_mofo.loopstate import taken_back
from cl_mofo.progress import Progress
from tests.engine_cases import build, small, stream
from tests.resume_cases import SETTINGS, STRATEGY, TASKS, save

SIGNED, UNSIGNED = b"s", b"u"
"""The first byte of a case: whether the checksums are made to fit what was changed."""


@functools.cache
def trained() -> tuple[Loop, dict[str, bytes]]:
    """Return a loop in its second task, and the files of its checkpoint."""
    model = small(hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    loop, _ = build(model, SingleEngine(), (f"strategy={STRATEGY}", *SETTINGS))
    loop.train(stream(TASKS, 8)[0], eval_streams=[])
    with tempfile.TemporaryDirectory() as folder:
        save(loop, Path(folder), Progress.of(len(TASKS)).to_json())
        (checkpoint,) = Store(Path(folder), Ranks(), 1).read()
        assert not isinstance(checkpoint, DamagedError)
        files = {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()}
    return loop, files


def seeds() -> list[bytes]:
    """Return each file with its name, as a case has them."""
    files = trained()[1]
    content = json.dumps(json.loads(files[INDEX])["content"]).encode()
    whole = [UNSIGNED + name.encode() + b"\n" + data for name, data in files.items()]
    signed = [SIGNED + n.encode() + b"\n" + d for n, d in files.items() if n != INDEX]
    return [*whole, *signed, SIGNED + INDEX.encode() + b"\n" + content]


def take_checkpoint(data: bytes, folder: Path) -> None:
    """Put a checkpoint with one changed file in its place, and take it back into a loop."""
    loop, files = trained()
    head, _, changed = data.partition(b"\n")
    signed, name = head[:1] == SIGNED, head[1:].decode()
    place = folder / "checkpoints" / "00000001-01"
    if not place.is_dir():
        place.mkdir(parents=True)
        for other, original in files.items():
            (place / other).write_bytes(original)
    try:
        _take(loop, files, folder, place, name, changed, signed=signed)
    finally:
        for other in (name, INDEX):
            (place / other).write_bytes(files[other])


def _take(
    loop: Loop,
    files: dict[str, bytes],
    folder: Path,
    place: Path,
    name: str,
    changed: bytes,
    *,
    signed: bool,
) -> None:
    if signed and name == INDEX:
        content: Any = None
        try:
            content = json.loads(changed)
        except (ValueError, RecursionError):
            raise DamagedError("no JSON") from None
        if not isinstance(content, dict):
            raise DamagedError("no mapping")
        try:
            (place / INDEX).write_bytes(checked_line(content))
        except ValueError:  # infinity, which JSON has not
            raise DamagedError("no JSON") from None
    else:
        (place / name).write_bytes(changed)
        if signed:
            index = read_checked(place / INDEX)
            index["files"][name] = [len(changed), digest(place / name)]
            (place / INDEX).write_bytes(checked_line(index))
    (found,) = Store(folder, Ranks(), 1).read()
    if isinstance(found, DamagedError):
        raise found
    if not signed and changed != files[name]:  # such as a space between two keys
        assert name == INDEX, "a checksum did not tell"
        assert read_checked(place / INDEX) == json.loads(files[INDEX])["content"]
    parts, spans = loop.engine.parameters(), loop.engine.spans()
    state = found.state(0, {n: (spans[n], part.shape) for n, part in parts.items()})
    Progress.from_json(dict(found.content), len(TASKS))
    taken_back(loop, state)
    assert all(type(n) is int for n in (loop.task_index, loop.step, loop.global_step))
