"""A run folder: what is written where.

recipe.yaml        what was asked, every default filled in
manifest.json      versions, commit, data hashes, hardware, start and stop
metrics.parquet    one row per optimizer step
predictions/<after>/<task>.jsonl   one line per test example
strategies/<after>.json   what strategies say of a task they have learned
results.json       scores, OP and BWT; rewritten after every task
adapter/           LoRA's adapters, in peft's format
figures/*.png      the matrix as a heat map, OP and BWT over tasks
model/             the final weights, as safetensors
run.log            what happened when
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from cl_mofo.errors import UserError

LOG = "run.log"


def hold(file: IO[Any], *, probe: bool = False) -> bool:
    """Lock a file for as long as it is open; or, as a probe, return whether no process holds it.

    Where the system has no such locks, it is nobody's.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB if probe else fcntl.LOCK_EX)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


class RunFolder:
    """Create and fill a run folder.

    Args:
        path: where; None makes a fresh folder `outputs/<time>-<label>`.
        label: the strategy, for the fresh folder's name.

    Raises:
        UserError: the folder exists and is not empty, or cannot be made.
    """

    def __init__(self, path: str | Path | None, label: str) -> None:
        self.check(path)
        self.path = _fresh(label) if path is None else Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # "x": of two runs that were given one folder at once, one gets it.
            self._handler = logging.FileHandler(self.path / LOG, "x", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be used: {error.strerror}") from error
        if self._handler.stream is not None:
            hold(self._handler.stream)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.log = logging.Logger("cl_mofo.run", logging.INFO)
        self.log.addHandler(self._handler)

    @staticmethod
    def in_use(path: Path) -> bool:
        """Tell whether a process is writing a run into a folder now."""
        try:
            with (path / LOG).open("r+b") as log:  # writable: NFS locks no other
                return not hold(log, probe=True)
        except OSError:
            return False

    @staticmethod
    def check(path: str | Path | None) -> None:
        """Refuse a path that cannot become a run folder, before anything is loaded."""
        wanted = Path("outputs" if path is None else path)
        try:
            str(wanted).encode()
            if wanted.exists() and not wanted.is_dir():
                raise UserError(f"--out {wanted}: is a file. Name a folder")
            if path is not None and wanted.is_dir() and any(wanted.iterdir()):
                raise UserError(
                    f"--out {path}: the folder is not empty. Name a fresh one, or leave --out away"
                )
            nearest = next(p for p in (wanted, *wanted.absolute().parents) if p.exists())
        except UnicodeEncodeError:
            raise UserError("--out: the folder's name is not valid text") from None
        except OSError as error:
            raise UserError(f"--out {wanted}: cannot be used: {error.strerror}") from error
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise UserError(f"--out {wanted}: {nearest} is no folder that can be written into")

    def close(self) -> None:
        """Close the log."""
        self._handler.close()

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        self._replace(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def write_yaml(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a YAML file whole or not at all."""
        self._replace(name, yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True))

    def write_predictions(self, after: str, task: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON line per test example."""
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        self._replace(f"predictions/{after}/{task}.jsonl", "\n".join(lines) + "\n")

    def write_record(self, after: str, record: Mapping[str, Any]) -> None:
        """Write what strategies say of the task just learned, if they say anything."""
        if record:
            self.write_json(f"strategies/{after}.json", record)

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the per-step figures."""
        import pandas as pd

        partial = self.path / "metrics.parquet.partial"
        pd.DataFrame(list(rows)).to_parquet(partial, index=False)
        os.replace(partial, self.path / "metrics.parquet")

    def _replace(self, name: str, text: str) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)


class NoFolder(RunFolder):
    """The run folder of a rank that writes nothing.

    Args:
        path: the folder that another rank writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = logging.Logger("cl_mofo.run", logging.CRITICAL + 1)

    def close(self) -> None:
        """Do nothing."""

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Do nothing."""

    def _replace(self, name: str, text: str) -> None:
        """Do nothing."""


def _fresh(label: str) -> Path:
    """Make a folder that is this run's alone, even if two start in the same second."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for count in itertools.count(1):
        candidate = Path("outputs") / f"{stamp}-{label}{'' if count == 1 else f'-{count}'}"
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{candidate}: cannot be made: {error.strerror}") from error
        return candidate
    raise AssertionError("unreachable")
