"""From a recipe's `data` section to records: a folder in TRACE's layout, or the embedded suite."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_mofo.config import EMBEDDED, DataConfig
from cl_mofo.data.records import AUXILIARY, Record, Splits, fingerprint, read_folder
from cl_mofo.data.share import drawn
from cl_mofo.errors import UserError
from cl_mofo.paths import expand
from cl_mofo.untrusted import MIB, read_bytes

PROSE = "prose"
"""Under which the hash of the prose is kept."""
MOST_PROSE_BYTES = 64 * MIB
MOST_PROSE_CHARACTERS = 4 * MIB


@dataclass(frozen=True)
class Suite:
    """What a run learns from.

    Args:
        records: {task: {"train" | "eval" | "test": records}}.
        auxiliary: rows of no task, for strategies that learn such; none where the suite has none.
        hashes: {file or split: SHA-256 before limits}.
        prose: the text that no task is about, as far as it is read.
    """

    records: Mapping[str, Splits]
    auxiliary: Sequence[Record]
    hashes: Mapping[str, str]
    prose: str | None = None


def load_suite(data: DataConfig, tasks: Sequence[str]) -> Suite:
    """Load the tasks' records: the first `*_limit` of each split, of `train_share` of the rows.

    Raises:
        UserError: the data are missing or wrong (see `read_folder`), or a path is missing or given
            to the embedded suite.
    """
    if data.suite == EMBEDDED:
        records = _embedded(data, tasks)
        whole = Suite(records, (), fingerprint(records))
    else:
        if data.path is None:
            raise UserError(
                f"recipe key data.path: the suite '{data.suite}' needs the folder of its data; "
                f"give --data PATH, or take the embedded suite with --set data.suite={EMBEDDED}"
            )
        folder = read_folder(expand(data.path, "data.path"), tasks)
        whole = Suite(folder.records, folder.auxiliary, folder.hashes)
    limits = {"train": data.train_limit, "eval": data.eval_limit, "test": data.test_limit}

    def train(rows: Sequence[Record], name: str) -> Sequence[Record]:
        return drawn(rows, data.train_share, data.share_seed, name)

    limited: dict[str, Splits] = {
        task: {
            split: (train(rows, task) if split == "train" else rows)[: limits[split]]
            for split, rows in splits.items()
        }
        for task, splits in whole.records.items()
    }
    prose, hashes = _prose(data), dict(whole.hashes)
    if prose is not None:
        hashes[PROSE] = hashlib.sha256(prose.encode("utf-8")).hexdigest()
    auxiliary = train(whole.auxiliary, AUXILIARY)[: data.train_limit]
    return Suite(limited, auxiliary, hashes, prose)


def _prose(data: DataConfig) -> str | None:
    """Read the text that no task is about; of a long one, its first characters.

    Raises:
        UserError: the file is missing, unreadable, too large or not UTF-8.
    """
    if data.prose is None:
        return None
    path = expand(data.prose, "data.prose")
    try:
        return read_bytes(path, MOST_PROSE_BYTES).decode("utf-8")[:MOST_PROSE_CHARACTERS]
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 text (byte {error.start})"
    except ValueError as error:
        reason = str(error)
    raise UserError(f"recipe key data.prose: {path} cannot be read: {reason}")


def _embedded(data: DataConfig, tasks: Sequence[str]) -> Mapping[str, Splits]:
    from cl_mofo import mini

    if data.path is not None:
        raise UserError(
            f"recipe key data.path: the suite '{EMBEDDED}' is embedded and reads no folder; for "
            f"the data in {data.path}, set data.suite too (trace, or your own)"
        )
    everything = mini.records()
    missing = [task for task in tasks if task not in everything]
    if missing:
        raise UserError(
            f"the embedded suite '{EMBEDDED}' has no task {', '.join(missing)}; it has "
            f"{', '.join(everything)}. Give your own data with data.suite and data.path"
        )
    return {
        task: {
            split: [Record(prompt=row["prompt"], answer=row["answer"]) for row in rows]
            for split, rows in everything[task].items()
        }
        for task in tasks
    }
