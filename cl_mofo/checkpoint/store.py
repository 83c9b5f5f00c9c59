"""A run's checkpoints: written whole or not at all, recognised when damaged, the newest few kept.

`checkpoints/<steps>-<tasks learned>/` holds the states of all ranks and `checkpoint.json`, which
has the checksum of every file and its own. A checkpoint is written beside its place and then
renamed; what was there before goes only after that. Which is the newest its name says, not a clock.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_mofo.checkpoint.state import load_state, save_state
from cl_mofo.engine.ranks import Ranks
from cl_mofo.errors import NotSavedError
from cl_mofo.files import (
    PARTIAL,
    DamagedError,
    digest,
    read_checked,
    synchronise,
    write_checked,
    write_whole,
)
from cl_mofo.folder import CHECKPOINTS
from cl_mofo.parts import Span

INDEX = "checkpoint.json"
FORMAT = 1
_NAME = re.compile(r"(\d{8,12})-(\d{2,6})")


def name_of(steps: int, learned: int) -> str:
    """Return the name of the checkpoint after so many steps and so many tasks learned."""
    return f"{steps:08d}-{learned:02d}"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been found as it was written.

    Args:
        folder: where it lies.
        ranks: how many ranks wrote it.
        identity: what the run was made of (identity.py).
        content: what the first rank keeps for all.
    """

    folder: Path
    ranks: int
    identity: Mapping[str, Any]
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def state(self, rank: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of a rank, of as many as there are now (`load_state`).

        Raises:
            DamagedError: it is not as it was written.
        """
        return load_state(self.folder, rank, self.ranks, wanted)


class Store:
    """The checkpoints of a run's folder.

    Args:
        run: the run's folder, the same on all ranks.
        ranks: the processes of the run, which all see that folder.
        keep: how many of the newest are kept, at least 1.
    """

    def __init__(self, run: Path, ranks: Ranks, keep: int) -> None:
        self._root, self._ranks, self._keep = run / CHECKPOINTS, ranks, keep

    def save(
        self,
        steps: int,
        learned: int,
        state: Mapping[str, Any],
        spans: Mapping[str, Span],
        identity: Mapping[str, Any],
        content: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> str:
        """Write a checkpoint; all ranks call it at once.

        Args:
            steps: optimizer steps taken so far.
            learned: tasks learned so far.
            state: this rank's.
            spans: what this rank's parts are.
            identity: what the run is made of; the first rank's counts.
            content: what JSON can hold, for all ranks; the first rank's counts.
            files: further files by name; the first rank's count.

        Returns:
            its name.

        Raises:
            NotSavedError: it could not be written, on some rank; the ones before are there still.
        """
        name = name_of(steps, learned)
        partial = self._root / (name + PARTIAL)
        ranks = self._ranks
        with _together(ranks):
            if ranks.first:
                self.clear_partial()
                partial.mkdir(parents=True)
        written: dict[str, list[Any]] = {}
        try:
            with _together(ranks):
                names = save_state(partial, state, ranks.rank, spans)
                if ranks.first:
                    for file, data in files.items():
                        write_whole(partial / file, [data])
                        names.append(file)
                for file in names:
                    written[file] = [(partial / file).stat().st_size, digest(partial / file)]
            everyone = ranks.gather(written)
            with _together(ranks):
                if ranks.first:
                    index = {
                        "format": FORMAT,
                        "ranks": ranks.count,
                        "identity": dict(identity),
                        "files": {k: v for files in everyone for k, v in files.items()},
                        "content": dict(content),
                    }
                    write_checked(partial / INDEX, index)
                    synchronise(partial)
                    self._put(partial, self._root / name)
        except BaseException:
            if ranks.first:
                shutil.rmtree(partial, ignore_errors=True)  # its bytes may be what others lack
            raise
        return name

    def _put(self, partial: Path, place: Path) -> None:
        if place.exists():  # of a run that went back to an earlier one
            os.replace(place, place.with_name(f"{place.name}.old{PARTIAL}"))
        os.replace(partial, place)
        synchronise(self._root)
        names = self._names()
        here = names.index(place.name)
        # Newer ones are of a way that this run has left, because they were damaged.
        for old in names[:here] + names[here + self._keep :]:
            gone = self._root / (old + PARTIAL)
            os.replace(self._root / old, gone)  # half of it must not be taken for a damaged one
            shutil.rmtree(gone, ignore_errors=True)
        self.clear_partial()

    def _names(self) -> list[str]:
        """Return the checkpoints' names, the newest first."""
        found = self._root.iterdir() if self._root.is_dir() else ()
        names = [path.name for path in found if _NAME.fullmatch(path.name)]
        return sorted(names, key=lambda name: [int(n) for n in name.split("-")], reverse=True)

    def newest(self) -> str | None:
        """Return the newest checkpoint's name, None where there is none."""
        return next(iter(self._names()), None)

    def clear_partial(self) -> None:
        """Remove what was not written to its end."""
        if self._root.is_dir():
            for path in self._root.glob(f"*{PARTIAL}"):
                shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove all checkpoints, of a run that is done."""
        shutil.rmtree(self._root, ignore_errors=True)

    def read(self) -> Iterator[Checkpoint | DamagedError]:
        """Yield the checkpoints, the newest first, or what is wrong with one."""
        for name in self._names():
            try:
                yield self._checked(self._root / name)
            except DamagedError as error:
                yield DamagedError(f"checkpoint {name} is damaged: {error}")

    def open(self, name: str) -> Checkpoint:
        """Return a checkpoint that another rank has found to be as it was written.

        Raises:
            DamagedError: it is not.
        """
        return _opened(self._root / name)[0]

    def _checked(self, folder: Path) -> Checkpoint:
        checkpoint, files = _opened(folder)
        for name, told in files.items():
            if not re.fullmatch(r"[\w-]+\.\w+", name):
                raise DamagedError(f"{name!r} is no file's name")
            file = folder / name
            try:
                if [file.stat().st_size, digest(file)] != told:
                    raise DamagedError(f"{name} is not as it was written: its checksum differs")
            except OSError as error:
                raise DamagedError(f"{name} cannot be read ({error.strerror})") from error
        return checkpoint


def _opened(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    found = read_checked(folder / INDEX)
    if found.get("format") != FORMAT:
        raise DamagedError(f"it has the format {found.get('format')!r}, not {FORMAT}")
    files, ranks = found.get("files"), found.get("ranks")
    identity, content = found.get("identity"), found.get("content")
    if not (
        isinstance(files, dict)
        and type(ranks) is int
        and 0 < ranks <= len(files)
        and isinstance(identity, dict)
        and isinstance(content, dict)
    ):
        raise DamagedError(f"{INDEX} is not as it was written")
    return Checkpoint(folder, ranks, identity, content), files


@contextmanager
def _together(ranks: Ranks) -> Iterator[None]:
    """Let all ranks fail where one cannot write.

    Raises:
        NotSavedError: with the reason.
    """
    reason = None
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
    reasons = ranks.gather(reason)
    if found := next((r for r in reasons if r is not None), None):
        raise NotSavedError(found)
