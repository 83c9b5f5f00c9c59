"""Whose a run's folder is: which process runs it, which recipe it holds, and how far it came.

A process claims a run by an exclusive lock on `.locks/<name>` beside the run's folder, for as long
as it runs it. The system frees the lock when the process ends, however it ends. The files stay:
removing one would let two processes lock two files of one name.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from cl_mofo.config import Recipe
from cl_mofo.errors import UserError
from cl_mofo.folder import LOG, RECIPE, begun
from cl_mofo.identity import DATA, FREE_IF, differences, flat, is_free
from cl_mofo.mappings import parsed
from cl_mofo.recipes import import_paths
from cl_mofo.report import load_results
from cl_mofo.resolve import resolve
from cl_mofo.strategy import parse_names
from cl_mofo.untrusted import MIB, distinct, read_bytes

LOCKS = ".locks"
MOST_BYTES = 16 * MIB
"""Of a manifest.json; larger ones are none of ours."""
MOVE = "Move it away, or give another --out"


class State(Enum):
    """How far a run's folder has come."""

    OPEN = "not there, empty, or of a run that was stopped"
    DIVERGED = "diverged"
    FINISHED = "finished"


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Claim a run's folder; give whether it was free, and free it at the end.

    Raises:
        UserError: the lock's file cannot be made, or the file system has no locks.
    """
    lock = folder.parent / LOCKS / folder.name
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise UserError(f"{lock}: cannot be made: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError as error:
            raise UserError(f"{lock}: cannot be locked: {error.strerror}") from error
        yield free


def state(folder: Path, recipe: Recipe) -> State:
    """Return how far a folder has come with a recipe; nothing is changed.

    Raises:
        UserError: it holds something else than a run of this recipe, or cannot be read.
    """
    try:
        if not folder.exists() or (folder.is_dir() and not begun(folder)):
            return State.OPEN
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error}") from error
    if differing := _differences(kept_recipe(folder), recipe, folder):
        raise UserError(f"{folder}: holds a run of another recipe: {differing}. {MOVE}")
    record = manifest_of(folder)
    if "diverged" in record:
        return State.DIVERGED
    # results.json calls a run finished once all is scored, the manifest once all is written.
    written = "finished" in record and (folder / "results.json").exists()
    return State.FINISHED if written and load_results(folder).finished else State.OPEN


def kept_recipe(folder: Path) -> Any:
    """Return what a run's recipe.yaml says.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        text = read_bytes(folder / RECIPE, MIB).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: there is something, but no run's {RECIPE}. {MOVE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder}: cannot be read: {error}") from error
    return parsed(text, f"{folder}/{RECIPE}")


def manifest_of(folder: Path) -> Mapping[str, Any]:
    """Return what a run's manifest.json holds, nothing where there is none.

    Raises:
        UserError: it cannot be read.
    """
    file = folder / "manifest.json"
    try:
        found = json.loads(read_bytes(file, MOST_BYTES), object_pairs_hook=distinct)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {error}. {MOVE}") from error
    return found if isinstance(found, dict) else {}


def clear(folder: Path) -> None:
    """Empty the folder of a run, its recipe.yaml last: a stop between is no harm.

    Its log stays, emptied too: whoever has it open holds the folder.

    Raises:
        UserError: something in it cannot be removed.
    """
    kept = folder / RECIPE
    try:
        for item in folder.iterdir():
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            elif item.name not in (LOG, RECIPE):
                item.unlink()
        kept.unlink(missing_ok=True)
        os.truncate(folder / LOG, 0)
    except OSError as error:
        raise UserError(f"{folder}: cannot be emptied: {error}") from error


def _differences(kept: Any, recipe: Recipe, folder: Path) -> str:
    """Name the keys in which a kept recipe is not this one, leaving out strategies not at work.

    Where its data lie is no such key: `run_sweep` compares what they are.

    Raises:
        UserError: the kept recipe is none, or was one only for other versions or imports.
    """
    names = {*Recipe.model_fields, *parse_names(recipe.strategy)}
    try:
        if not isinstance(kept, Mapping):
            raise UserError("it is no mapping of keys")
        if import_paths(kept.get("imports")) != recipe.imports:  # other code, which is not to run
            raise UserError(f"its imports are {brief(kept.get('imports'))}")
        found = resolve({key: value for key, value in kept.items() if key in names})
    except UserError as error:
        raise UserError(f"{folder}: its recipe.yaml is not valid here: {error}. {MOVE}") from error
    theirs, ours = dict(flat(found)), dict(flat(recipe))
    return ", ".join(
        f"{key} ({brief(before)} there, {brief(here)} here)"
        for key, (before, here) in differences(theirs, ours).items()
        if key in ours and key not in DATA and not (key in FREE_IF and is_free(key, ours))
    )
