"""Read TRACE's layout, `<folder>/<task>/{train,eval,test}.json`, and name everything wrong with it.

Each file is a JSON list of records `{"prompt": str, "answer": str}`. Reading collects every problem
of every file before it refuses, so that a user mends them in one go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from cl_mofo.errors import UserError

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
    records: dict[str, dict[str, list[Record]]] = {}
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
            try:
                data = (root / task / f"{split}.json").read_bytes()
            except OSError as error:
                problems.append(f"{name}: {_reason(error)}")
                continue
            hashes[name] = hashlib.sha256(data).hexdigest()
            records[task][split] = parse_records(data, name, problems)
    auxiliary: list[Record] = []
    extra = root / AUXILIARY / "train.json"
    if extra.is_file():
        data = extra.read_bytes()
        hashes[f"{AUXILIARY}/train.json"] = hashlib.sha256(data).hexdigest()
        auxiliary = parse_records(data, f"{AUXILIARY}/train.json", problems)
    if problems:
        raise UserError("\n".join([f"data folder {root} has {_count(problems)}:", *problems]))
    return Folder(records, auxiliary, hashes)


def parse_records(data: bytes, name: str, problems: list[str]) -> list[Record]:
    """Return the good records of a file's bytes and append what is wrong to `problems`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{name}: byte {error.start} is not UTF-8. Save the file as UTF-8")
        return []
    if not text.strip():
        problems.append(f"{name}: the file is empty")
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(f"{name}: line {error.lineno}, column {error.colno}: {error.msg}")
        return []
    except (RecursionError, ValueError) as error:
        problems.append(f"{name}: not JSON that can be read: {error}")
        return []
    if not isinstance(value, list):
        problems.append(f"{name}: a list of records was expected, not a {type(value).__name__}")
        return []
    if not value:
        problems.append(f"{name}: the list is empty")
        return []
    found = [(i, _problem(record)) for i, record in enumerate(value)]
    wrong = [(i, problem) for i, problem in found if problem]
    problems += [f"{name}: record {i} {problem}" for i, problem in wrong[:SHOWN_PER_FILE]]
    if len(wrong) > SHOWN_PER_FILE:
        problems.append(f"{name}: {len(wrong) - SHOWN_PER_FILE} more records like these")
    return [
        Record(prompt=record["prompt"], answer=record["answer"])
        for record, (_, problem) in zip(value, found, strict=True)
        if not problem
    ]


def _problem(record: object) -> str:
    if not isinstance(record, dict):
        return f"is a {type(record).__name__}. {_SHAPE}"
    for key in ("prompt", "answer"):
        if key not in record:
            keys = ", ".join(map(str, list(record)[:6])) or "none"
            return f'has no "{key}" (keys: {keys}). {_SHAPE}'
        value = record[key]
        if not isinstance(value, str):
            return f'has a {type(value).__name__} as "{key}". {_SHAPE}'
        if not value:
            return f'has an empty "{key}"'
        if any("\ud800" <= c <= "\udfff" for c in value):
            return f'has a lone surrogate in "{key}", which is no text'
    return ""


_SHAPE = 'TRACE records are {"prompt": str, "answer": str}'


def _reason(error: OSError) -> str:
    return "the file is missing" if isinstance(error, FileNotFoundError) else str(error)


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
