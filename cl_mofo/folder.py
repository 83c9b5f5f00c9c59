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
checkpoints/       what the run needs to go on, until it is done
run.log            what happened when
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from cl_mofo.errors import NotWrittenError, UserError
from cl_mofo.files import PARTIAL, write_checked, write_whole
from cl_mofo.untrusted import printable

LOG = "run.log"
RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
PROGRESS = f"{CHECKPOINTS}/progress.json"
"""What has been measured so far, with its checksum."""


def hold(file: IO[Any], *, probe: bool = False) -> bool:
    """Lock a file for as long as it is open, unless another process holds it; say whether it is so.

    As a probe, only say whether no process holds it. The system frees the lock when its process
    ends, however that ends. Where the system has no such locks, the file is nobody's.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if probe else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def begun(folder: Path) -> bool:
    """Tell whether a folder holds more than what a run leaves that is killed at its very start."""
    return any(path.name not in (LOG, RECIPE + PARTIAL) for path in folder.iterdir())


def holds_run(folder: Path) -> bool:
    """Tell whether a folder holds a run; a recipe of the user's may be called recipe.yaml, too."""
    written = any((folder / name).is_file() for name in (LOG, "manifest.json"))
    return written and (folder / RECIPE).is_file()


class _Log(logging.FileHandler):
    """A log that loses what cannot be written: a full disk ends no run by that."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Do nothing."""

    def close(self) -> None:
        """Close the file, and free its lock."""
        with suppress(OSError):
            super().close()


class _Line(logging.Formatter):
    """A line of the log: what others wrote in it acts on no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class RunFolder:
    """Create and fill a run folder, or go on filling one.

    Args:
        path: where; None makes a fresh folder `outputs/<time>-<label>`.
        label: the strategy, for the fresh folder's name.
        resume: whether the folder holds a run that is to go on.

    Raises:
        UserError: the folder exists and is not empty, cannot be made, or another process writes it.
    """

    def __init__(self, path: str | Path | None, label: str, *, resume: bool = False) -> None:
        if not resume:
            self.check(path)
        self.path = _fresh(label) if path is None else Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            log = self.path / LOG
            if log.is_symlink() or (log.exists() and not log.is_file()):
                raise UserError(f"{log}: is no file of the run's own. Move it away")
            self._handler = _Log(self.path / LOG, "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be used: {error.strerror}") from error
        if self._handler.stream is not None and not hold(self._handler.stream):
            self._handler.close()
            raise UserError(f"{self.path}: another process is running this run. Let it, or stop it")
        if not resume and begun(self.path):  # since it was looked at
            self._handler.close()
            raise UserError(f"--out {self.path}: another run has just begun there")
        self._handler.setFormatter(_Line("%(asctime)s %(levelname)s %(message)s"))
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
            if path is not None and wanted.is_dir() and begun(wanted):
                if (wanted / RECIPE).is_file():
                    raise UserError(
                        f"--out {path}: the folder holds a run. Go on with it by --resume (or "
                        f"cl-mofo resume {shlex.quote(str(path))}), delete it and begin anew by "
                        f"--overwrite, or name a fresh folder"
                    )
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
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self._replace(name, [text.encode()])

    def write_yaml(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a YAML file whole or not at all."""
        text: str = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)
        self._replace(name, [text.encode()])

    def write_checked(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file with its checksum (files.py), whole or not at all."""
        with self.writing(name) as target:
            write_checked(target, value)

    def write_predictions(self, after: str, task: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON line per test example."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._replace(f"predictions/{after}/{task}.jsonl", (line.encode() for line in lines))

    def write_record(self, after: str, record: Mapping[str, Any]) -> None:
        """Write what strategies say of the task just learned, if they say anything."""
        if record:
            self.write_json(f"strategies/{after}.json", record)

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the per-step figures."""
        import pandas as pd

        table = io.BytesIO()
        pd.DataFrame(list(rows)).to_parquet(table, index=False)
        self._replace("metrics.parquet", [table.getvalue()])

    def _replace(self, name: str, content: Iterable[bytes]) -> None:
        with self.writing(name) as target:
            write_whole(target, content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a file's place, and tell what to do if it cannot be written.

        Raises:
            NotWrittenError: it cannot; what was there before is there still.
        """
        target = self.path / name
        try:
            yield target
        except Exception as error:
            reason = _unwritten(error)
            if reason is None:
                raise
            raise self.not_written(f"{target}: cannot be written: {reason}") from error

    def not_written(self, told: str) -> NotWrittenError:
        """Return the error that says so, and how to go on."""
        return NotWrittenError(
            f"{told}. Nothing that was saved before is lost: mend this, then go on by cl-mofo "
            f"resume {shlex.quote(str(self.path))}"
        )


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

    def write_checked(self, name: str, value: Mapping[str, Any]) -> None:
        """Do nothing."""

    def _replace(self, name: str, content: Iterable[bytes]) -> None:
        """Do nothing."""


def _unwritten(error: Exception) -> str | None:
    """Return why the system could not write, None if it is not that."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # safetensors and tokenizers, which are written in Rust, have it in their text alone.
    told = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(told[1])) if told else None


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
