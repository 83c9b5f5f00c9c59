"""Encode records once: what is much is kept in the user's cache, by a hash of what it is made of.

There it is an Arrow file, mapped into memory and never read whole, so that a set may be larger than
memory. Its name has a hash of its content: one that is damaged is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cl_mofo.cachedir import cache_folder, source_digest, trim, used
from cl_mofo.data.records import Record
from cl_mofo.data.tokenise import Encoder, Example

ROWS = 256
"""Records that are encoded together."""
WORTH_KEEPING = 1 << 20
"""Bytes of text from which on encoding takes longer than looking for what was encoded before."""
MOST_BYTES = 4 << 30
"""Of the whole cache."""

_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema([("ids", _IDS), ("supervised", pa.int32()), ("prompt", _IDS)])


class Encoded(Sequence[Example]):
    """Encoded records.

    Args:
        batches: Arrow's, of `ROWS` records each but the last: "ids" as of an `Example`,
            "supervised", and "prompt" where it is not what comes before the supervised ids.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = [_Batch(batch) for batch in batches]
        self.lengths = _joined([batch.ids.lengths for batch in self._batches])
        """[records]: ids of each."""
        self.supervised = _joined([batch.supervised for batch in self._batches])
        """[records]: supervised ids of each."""
        self.prompt_lengths = _joined([batch.prompt_lengths for batch in self._batches])
        """[records]: ids of each prompt, as a model is given it."""

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        batch, row = self._place(index)
        return Example(tuple(batch.ids[row].tolist()), int(batch.supervised[row]))

    def prompt(self, index: int) -> list[int]:
        """Return the ids a model is given before it answers."""
        batch, row = self._place(index)
        ids: list[int] = batch.prompt(row).tolist()
        return ids

    def _place(self, index: int) -> tuple[_Batch, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number, row = divmod(index % len(self), ROWS)
        return self._batches[number], row


class _Lists:
    """A column of lists, as numpy arrays that share Arrow's memory."""

    def __init__(self, column: Any) -> None:
        self.offsets = column.offsets.to_numpy()
        self.values = column.values.to_numpy()
        self.lengths = np.diff(self.offsets)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        found: NDArray[np.int32] = self.values[self.offsets[row] : self.offsets[row + 1]]
        return found


class _Batch:
    def __init__(self, batch: Any) -> None:
        self.ids, self._prompts = _Lists(batch["ids"]), _Lists(batch["prompt"])
        self.supervised = batch["supervised"].to_numpy()
        self._apart = batch["prompt"].is_valid().to_numpy(zero_copy_only=False)
        before = self.ids.lengths - self.supervised
        self.prompt_lengths = np.where(self._apart, self._prompts.lengths, before)

    def prompt(self, row: int) -> NDArray[np.int32]:
        if self._apart[row]:
            return self._prompts[row]
        return self.ids[row][: self.prompt_lengths[row]]


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts], dtype=np.int64)


def encode_records(encoder: Encoder, records: Sequence[Record]) -> Encoded:
    """Encode records, or find them encoded.

    Args:
        encoder: a model's, with a task's budgets.
        records: read twice at most, a few at a time.
    """
    folder = cache_folder("examples")
    if folder is None or not (key := _key(encoder, records)):
        return Encoded(list(_batches(encoder, records)))
    found = _found(folder, key) or _made(folder, key, encoder, records)
    return found or Encoded(list(_batches(encoder, records)))


def _batches(encoder: Encoder, records: Sequence[Record]) -> Iterator[Any]:
    for start in range(0, len(records), ROWS):
        rows = [records[i] for i in range(start, min(start + ROWS, len(records)))]
        prompts = [row["prompt"] for row in rows]
        examples = encoder.encode_all(prompts, [row["answer"] for row in rows])
        apart = encoder.prompts(prompts) if encoder.joint else [None] * len(rows)
        columns = [
            pa.array([example.ids for example in examples], _IDS),
            pa.array([example.supervised for example in examples], pa.int32()),
            pa.array(apart, _IDS),
        ]
        yield pa.record_batch(columns, schema=_SCHEMA)


def _key(encoder: Encoder, records: Sequence[Record]) -> str:
    """Return a hash of all that decides what the records become; "" if it is not worth it."""
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""  # a tokenizer of Python code, which no hash can know
    digest, size = digest_of(records)
    if size < WORTH_KEEPING:
        return ""
    import tokenizers
    import transformers

    made_of = [
        digest,
        source_digest(),
        backend.to_str(),
        encoder.bos,
        encoder.eos,
        encoder.prompt_tokens,
        encoder.answer_tokens,
        encoder.joint,
        [tokenizers.__version__, transformers.__version__, pa.__version__],
    ]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


def digest_of(records: Sequence[Record]) -> tuple[str, int]:
    """Return the SHA-256 of records in their order, and the bytes of their texts."""
    digest, size = hashlib.sha256(), 0
    for record in records:
        for text in (record["prompt"], record["answer"]):
            encoded = text.encode()
            size += len(encoded)
            digest.update(len(encoded).to_bytes(8) + encoded)
    return digest.hexdigest(), size


def _found(folder: Path, key: str) -> Encoded | None:
    for path in folder.glob(f"{key}-*.arrow"):
        try:
            with path.open("rb") as file:
                content: Any = file
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            if path.name == _name(key, digest):
                used(path)
                return _opened(path)
            path.unlink()
        except (OSError, pa.ArrowException):
            continue
    return None


def _opened(path: Path) -> Encoded:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return Encoded([reader.get_batch(i) for i in range(reader.num_record_batches)])


def _name(key: str, digest: str) -> str:
    return f"{key}-{digest[:32]}.arrow"


def _made(folder: Path, key: str, encoder: Encoder, records: Sequence[Record]) -> Encoded | None:
    """Encode into a file of the cache; None if it cannot be written."""
    partial = None
    try:
        descriptor, partial = tempfile.mkstemp(".partial", key, folder)
        with os.fdopen(descriptor, "r+b") as file:
            with pa.ipc.new_file(file, _SCHEMA) as writer:
                for batch in _batches(encoder, records):
                    writer.write_batch(batch)
            file.seek(0)
            content: Any = file
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        path = folder / _name(key, digest)
        os.replace(partial, path)
        trim(folder, MOST_BYTES)
        return _opened(path)
    except OSError:  # a full disk, say: then they are held in memory
        return None
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
