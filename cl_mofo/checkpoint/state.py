"""A state on disk: its tensors as safetensors, everything else as JSON; nothing is pickled.

Each rank writes its own files. Any number of ranks can read them again: what is of a rank's parts
of parameters is put together from the files of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cl_mofo.checkpoint.tree import Place, parts_in, put_together, taken_apart
from cl_mofo.files import MOST_BYTES, DamagedError, from_json, synchronise, to_json, write_whole
from cl_mofo.parts import Span
from cl_mofo.untrusted import open_regular, read_bytes

FILE_BYTES = 2**30
"""About how many bytes of tensors a file has: writing one takes as much memory again."""


def save_state(
    folder: Path, state: Mapping[str, Any], rank: int = 0, spans: Mapping[str, Span] | None = None
) -> list[str]:
    """Write a rank's state into a folder, which is made if need be.

    Args:
        folder: where.
        state: the state (tree.py says of what).
        rank: whose it is.
        spans: what this rank's parts are of each parameter; all of each by default.

    Returns:
        the names of the files written.

    Raises:
        TypeError: a value is none of those that a state may hold; names its place.
        OSError: a file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    values = taken_apart(state, tensors, spans or {})
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[str]] = {}
    for number, names in enumerate(_by_size(tensors)):
        file = f"tensors-{rank:05d}-{number:05d}.safetensors"
        try:
            save_file(_on_cpu({name: tensors[name] for name in names}), folder / file)
            synchronise(folder / file)
        except SafetensorError as error:
            raise OSError(None, str(error), str(folder / file)) from error
        files[file] = names
    name = _values_of(rank)
    write_whole(folder / name, [to_json({"files": files, "state": values})])
    return [*files, name]


def load_state(
    folder: Path,
    rank: int = 0,
    saved: int = 1,
    wanted: Mapping[str, tuple[Span, torch.Size]] | None = None,
) -> dict[str, Any]:
    """Read a rank's state back, its tensors on the CPU.

    Args:
        folder: where it is.
        rank: which rank's; one that wrote none gets what does not belong to parts from the first.
        saved: how many ranks wrote states.
        wanted: which entries of each parameter this rank holds now, and in which shape; by default
            those that it wrote.

    Raises:
        DamagedError: the files are not as they were written.
    """
    try:
        with _Files(folder, saved) as files:
            return files.state(rank if rank < saved else 0, wanted)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise DamagedError(f"the state is not as it was written ({error!r})") from error
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"the state cannot be read ({error})") from error


class _Files:
    """The files of all ranks, read as they are needed."""

    def __init__(self, folder: Path, saved: int) -> None:
        self._folder = folder
        self._values = []
        self._places: list[dict[str, str]] = []
        for rank in range(saved):
            name = _values_of(rank)
            found = from_json(read_bytes(folder / name, MOST_BYTES), name)
            self._values.append(found["state"])
            self._places.append(
                {name: file for file, names in found["files"].items() for name in names}
            )
        self._open: dict[str, Any] = {}
        self._closing = ExitStack()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def state(
        self, rank: int, wanted: Mapping[str, tuple[Span, torch.Size]] | None
    ) -> dict[str, Any]:
        def parts(place: Place, entries: Sequence[Any]) -> dict[str, torch.Tensor]:
            if wanted is None:
                return {name: self._tensor(rank, tensor) for name, tensor, *_ in entries}
            return {
                name: self._assembled(found[place, name], *wanted[name]) for name in named[place]
            }

        found: dict[tuple[Place, str], list[tuple[int, str, Span]]] = {}
        named: dict[Place, dict[str, None]] = {}
        for other, values in enumerate(self._values):
            for place, entries in parts_in(values):
                names = named.setdefault(place, {})
                for name, tensor, start, numel in entries:
                    found.setdefault((place, name), []).append((other, tensor, Span(start, numel)))
                    names[name] = None
        own = put_together(self._values[rank], lambda name: self._tensor(rank, name), parts)
        if not isinstance(own, dict):
            raise TypeError("a mapping was expected")
        return own

    def _tensor(self, rank: int, name: str) -> torch.Tensor:
        file = self._places[rank][name]
        if Path(file).name != file:
            raise ValueError(f"{file!r} is no file's name")
        if file not in self._open:
            open_regular(self._folder / file).close()  # a pipe would be waited for
            opened: Any = safe_open(self._folder / file, "pt")
            self._open[file] = self._closing.enter_context(opened)
        tensor: torch.Tensor = self._open[file].get_tensor(name)
        return tensor

    def _assembled(
        self, pieces: Sequence[tuple[int, str, Span]], span: Span, shape: torch.Size
    ) -> torch.Tensor:
        """Return the entries that a rank holds, from wherever they were written."""
        end, at = span.start + span.numel, span.start
        taken: list[torch.Tensor] = []
        for rank, name, piece in sorted(pieces, key=lambda p: (p[2].start, -p[2].numel)):
            first, last = max(at, piece.start), min(end, piece.start + piece.numel)
            if first == at and (last > first or not taken):
                flat = self._tensor(rank, name).reshape(-1)
                if flat.numel() != piece.numel:
                    raise ValueError(f"{name} has {flat.numel()} entries, not {piece.numel}")
                taken.append(flat[first - piece.start : max(first, last) - piece.start])
                at = max(first, last)
        if at != end:
            raise ValueError(f"entries from {at} of {pieces[0][1]} are missing")
        return (taken[0] if len(taken) == 1 else torch.cat(taken)).reshape(shape)


def _values_of(rank: int) -> str:
    return f"state-{rank:05d}.json"


def _by_size(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > FILE_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors on the CPU of which none shares memory, as safetensors wants them."""
    moved: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.to("cpu").contiguous()
        storage = here.untyped_storage()
        if storage.nbytes() != here.nbytes or storage.data_ptr() in taken:
            here = here.clone()
        taken.add(here.untyped_storage().data_ptr())
        moved[name] = here
    return moved
