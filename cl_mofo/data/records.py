"""Read TRACE's layout, `<folder>/<task>/{train,eval,test}.json`, and name everything wrong with it.

Each file is a JSON list of records `{"prompt": str, "answer": str}`. Reading collects every problem
of every file before it refuses, so that a user mends them in one go. A file is read once from
beginning to end; after that its records come from it one by one, so that it may be larger than
memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import weakref
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import BinaryIO, Literal, TypedDict, overload

from cl_mofo.data.jsonlist import MalformedError, values
from cl_mofo.errors import UserError
from cl_mofo.untrusted import open_regular

SPLITS = ("train", "eval", "test")
AUXILIARY = "Lima"
"""TRACE's general instructions, of no task. Only its training file is read, where it is there: the
answers in the others are empty."""
SHOWN_PER_FILE = 5


class Record(TypedDict):
    """One example."""

    prompt: str
    answer: str


Splits = Mapping[str, Sequence[Record]]
"""Split name ("train", "eval", "test") to its records."""


class _Source:
    """An open file, closed when nothing reads from it any more.

    Args:
        file: regular.
        name: what errors call it.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.number, self.name = file.fileno(), name
        weakref.finalize(self, file.close)


class Rows(Sequence[Record]):
    """The records of a file, which stay there: each is read when it is asked for.

    In memory a record takes 16 bytes, whatever its length.

    Args:
        source: the file.
        starts, lengths, sums: of each record, where its bytes lie, and their CRC-32.
    """

    def __init__(
        self, source: _Source, starts: array[int], lengths: array[int], sums: array[int]
    ) -> None:
        self.source = source
        self.starts, self.lengths, self.sums = starts, lengths, sums

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Record | Rows:
        """Return a record, or for a slice rows of the same file.

        Raises:
            UserError: the file is not what it was when it was checked.
        """
        if isinstance(index, slice):
            parts = (self.starts[index], self.lengths[index], self.sums[index])
            return Rows(self.source, *parts)
        data = os.pread(self.source.number, self.lengths[index], self.starts[index])
        if zlib.crc32(data) != self.sums[index]:
            raise UserError(
                f"{self.source.name}: record {index} is no longer what it was when the file was "
                f"checked. Leave data files as they are while a run reads them"
            )
        record = json.loads(data)
        return Record(prompt=record["prompt"], answer=record["answer"])

    def at(self, indices: Sequence[int]) -> Rows:
        """Return the rows at some places, in the places' order."""
        columns = (self.starts, self.lengths, self.sums)
        return Rows(self.source, *(array(c.typecode, [c[i] for i in indices]) for c in columns))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Column(Sequence[str]):
    """One text of each record, read when it is asked for.

    Args:
        rows: the records.
        key: which of their texts.
    """

    def __init__(self, rows: Sequence[Record], key: Literal["prompt", "answer"]) -> None:
        self.rows = rows
        self.key: Literal["prompt", "answer"] = key

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Column: ...
    def __getitem__(self, index: int | slice) -> str | Column:
        if isinstance(index, slice):
            return Column(self.rows[index], self.key)
        return self.rows[index][self.key]


@dataclass(frozen=True)
class Folder:
    """What a TRACE folder holds: records by task and split, auxiliary ones, each file's SHA-256."""

    records: Mapping[str, Splits]
    auxiliary: Sequence[Record]
    hashes: Mapping[str, str]


def read_folder(path: str | Path, tasks: Iterable[str]) -> Folder:
    """Read the three files of each task, and the auxiliary records if there are any.

    Args:
        path: the folder that holds one folder per task.
        tasks: names of the tasks to read.

    Raises:
        UserError: with every problem found, one a line: a missing folder, task or split, bytes that
            are not UTF-8, broken JSON (with its line), an empty file or list, a record without
            `prompt` or `answer`, or with one that is not a non-empty string.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"data folder {root}: there is no such folder")
    records: dict[str, dict[str, Sequence[Record]]] = {}
    hashes: dict[str, str] = {}
    problems: list[str] = []
    for task in tasks:
        if not (root / task).is_dir():
            problems.append(
                f"{task}: the folder {root / task} is missing. A suite's folder holds one folder a "
                f"task; to run without it, set tasks.only"
            )
            continue
        records[task] = {}
        for split in SPLITS:
            name = f"{task}/{split}.json"
            found = _read(root / task / f"{split}.json", name, hashes, problems)
            if found is not None:
                records[task][split] = found
    auxiliary: Sequence[Record] = []
    extra = root / AUXILIARY / "train.json"
    if extra.is_file():
        auxiliary = _read(extra, f"{AUXILIARY}/train.json", hashes, problems) or []
    if problems:
        raise UserError("\n".join([f"data folder {root} has {_count(problems)}:", *problems]))
    return Folder(records, auxiliary, hashes)


def _read(path: Path, name: str, hashes: dict[str, str], problems: list[str]) -> Rows | None:
    """Check a file, and return its rows; note its SHA-256, or what is wrong with it."""
    try:
        file = open_regular(path)
    except OSError as error:
        problems.append(f"{name}: {_reason(error)}")
        return None
    source = _Source(file, name)
    starts, lengths, sums = array("Q"), array("I"), array("I")
    digest = hashlib.sha256()
    wrong: list[str] = []
    count, unsaid = -1, 0
    try:
        for count, found in enumerate(values(file, digest.update)):
            if problem := _problem(found.value):
                if len(wrong) < SHOWN_PER_FILE:
                    wrong.append(f"{name}: record {count} {problem}")
                else:
                    unsaid += 1
            starts.append(found.start)
            lengths.append(len(found.data))
            sums.append(zlib.crc32(found.data))
        if count < 0:
            wrong.append(f"{name}: the list is empty")
        if unsaid:
            wrong.append(f"{name}: {unsaid} more records like these")
    except MalformedError as error:
        wrong = [f"{name}: {error}"]
    except OSError as error:
        wrong = [f"{name}: {_reason(error)}"]
    problems += wrong
    hashes[name] = digest.hexdigest()
    return Rows(source, starts, lengths, sums)


def _problem(record: object) -> str:
    if not isinstance(record, dict):
        return f"is a {type(record).__name__}. {_SHAPE}"
    for key in ("prompt", "answer"):
        if key not in record:
            keys = ", ".join(brief(key)[1:-1] for key in list(record)[:6]) or "none"
            return f'has no "{key}" (keys: {keys}). {_SHAPE}'
        value = record[key]
        if not isinstance(value, str):
            return f'has a {type(value).__name__} as "{key}". {_SHAPE}'
        if not value:
            return f'has an empty "{key}"'
        if _SURROGATE.search(value):
            return f'has a lone surrogate in "{key}", which is no text'
    return ""


_SURROGATE = re.compile("[\ud800-\udfff]")
_SHAPE = 'TRACE records are {"prompt": str, "answer": str}'


def _reason(error: OSError) -> str:
    missing = isinstance(error, FileNotFoundError)
    return "the file is missing" if missing else f"cannot be read: {error.strerror or error}"


def _count(problems: Sequence[str]) -> str:
    return "a problem" if len(problems) == 1 else f"{len(problems)} problems"


def fingerprint(records: Mapping[str, Splits]) -> dict[str, str]:
    """Return the SHA-256 of each split's records, for suites that have no files."""
    return {
        f"{task}/{split}": hashlib.sha256(
            json.dumps(list(rows), ensure_ascii=False, sort_keys=True).encode()
        ).hexdigest()
        for task, splits in records.items()
        for split, rows in splits.items()
    }
