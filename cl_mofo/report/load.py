"""Read `results.json`, the record of one run, and refuse what is not one.

    {"schema": 1, "strategy": "mofo", "seed": 42, "suite": "trace-mini", "model": "tiny",
     "tasks": ["C-STANCE", "FOMC"], "headline": {"C-STANCE": "accuracy", "FOMC": "accuracy"},
     "scores": [[46.7, null], [28.3, 45.0]], "initial": [0.0, 0.0],
     "op": [46.7, 36.65], "bwt": [null, -18.4], "finished": true}

Scores are percent; row i holds those after learning task i. `suite`, `model`, `headline`, `initial`
and `finished` may be missing, and so may `distance` and `prose_losses` (docs/architecture.md).
Other keys are ignored. OP and BWT are computed from the scores again, and a file whose own figures
disagree is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NoReturn

from cl_mofo.errors import UserError
from cl_mofo.report.results import BWT_CONVENTION, OP_CONVENTION, Cells, RunResults
from cl_mofo.report.settings import read_settings
from cl_mofo.untrusted import MIB, distinct, read_bytes

SCHEMA = 1
FILE_NAME = "results.json"
REQUIRED = ("schema", "strategy", "seed", "tasks", "scores", "op", "bwt")
MOST_BYTES = 16 * MIB
MOST_TASKS = 1000
LONGEST_NAME = 500
"""Characters; a model's may be a path, which is longer."""
LONGEST_PATH = 4096
SEEDS = 2**32
MOST_LOSS = 700.0
"""Its exponential is still a number."""
MOST_DISTANCE = 1e9
"""Relative, to weights that may have begun near 0."""
ROUNDING = 0.051
"""How far a stored OP or BWT may lie from the one its scores give: one decimal's rounding."""


def load_results(path: str | Path) -> RunResults:
    """Read one run, and the recipe beside it if there is one.

    Args:
        path: a run folder or a `results.json`.

    Raises:
        UserError: the file is missing, unreadable, not JSON, or no record of a run.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    try:
        text = read_bytes(file, MOST_BYTES).decode("utf-8")
        data = json.loads(text, object_pairs_hook=distinct)
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file. Give a run folder, which holds a {FILE_NAME}, or that file"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        _refuse(file, f"is not UTF-8 text (byte {error.start})")
    except json.JSONDecodeError as error:
        _refuse(file, f"is not JSON: line {error.lineno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        _refuse(file, f"is not JSON of a run: {error}")
    run = parse_results(data, file)
    return dataclasses.replace(run, settings=read_settings(file.parent, run.strategy))


def load_runs(paths: Iterable[str | Path]) -> list[RunResults]:
    """Read every run under some paths, each once, in the order given.

    Args:
        paths: run folders, `results.json` files, or folders that hold run folders, such as
            `outputs/`, up to two levels down (there in the order of their names).

    Raises:
        UserError: as `load_results`, or a folder holds no run.
    """
    found = {file.resolve(): file for path in paths for file in _run_files(Path(path))}
    if not found:
        raise UserError("no run is named. Give one or more run folders, such as outputs/mofo")
    return [load_results(file) for file in found.values()]


def _run_files(path: Path) -> list[Path]:
    if not path.is_dir() or (path / FILE_NAME).exists():
        return [path / FILE_NAME if path.is_dir() else path]
    files: list[Path] = []
    for pattern in (f"*/{FILE_NAME}", f"*/*/{FILE_NAME}"):
        files += path.glob(pattern)
    if not files:
        raise UserError(f"{path}: holds no run: no {FILE_NAME} in it or two levels below")
    return sorted(files)


def parse_results(data: Any, path: str | Path) -> RunResults:
    """Check what a `results.json` holds, already decoded.

    Args:
        data: the decoded JSON.
        path: the file it came from or will be written to, named in errors.

    Raises:
        UserError: a key is missing or a value is not what the schema says.
    """
    path = Path(path)
    if not isinstance(data, dict):
        _refuse(path, f"holds {_kind(data)}, not an object with the keys {', '.join(REQUIRED)}")
    if missing := [key for key in REQUIRED if key not in data]:
        _refuse(path, f"has no {', '.join(repr(key) for key in missing)}")
    if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
        _refuse(path, f"has schema {brief(data['schema'])}; this version of cl-mofo reads {SCHEMA}")
    seed = data["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS:
        _refuse(path, f"'seed' is {brief(seed)}, not an integer from 0 to {SEEDS - 1}")
    tasks = data["tasks"]
    if not isinstance(tasks, list) or not tasks:
        _refuse(path, f"'tasks' is {_kind(tasks)}, not a list of at least one name")
    if len(tasks) > MOST_TASKS:
        _refuse(path, f"'tasks' names {len(tasks)} tasks; {MOST_TASKS} at most can be shown")
    tasks = tuple(_name(path, f"tasks[{i}]", task) for i, task in enumerate(tasks))
    if len(set(tasks)) < len(tasks):
        _refuse(path, "'tasks' names a task twice")
    rows = _list(path, "scores", data["scores"], len(tasks))
    scores = tuple(_percents(path, f"scores[{i}]", row, tasks) for i, row in enumerate(rows))
    initial = data.get("initial")
    run = RunResults(
        path=path,
        strategy=_name(path, "strategy", data["strategy"]),
        seed=seed,
        suite=_optional_name(path, "suite", data.get("suite")),
        model=_optional_name(path, "model", data.get("model"), LONGEST_PATH),
        tasks=tasks,
        headline=_headline(path, data.get("headline")),
        scores=scores,
        initial=None if initial is None else _percents(path, "initial", initial, tasks),
        finished=_finished(path, data.get("finished"), None not in scores[-1]),
        cut=data.get("measured") == "headline",
        distances=_measures(path, "distance", data, len(tasks), MOST_DISTANCE),
        prose_losses=_measures(path, "prose_losses", data, len(tasks) + 1, MOST_LOSS),
    )
    _agrees(path, "op", data["op"], run.op, OP_CONVENTION)
    _agrees(path, "bwt", data["bwt"], run.bwt, BWT_CONVENTION)
    return run


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"{path}: {what}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), f"the value {brief(value)}")


def _list(path: Path, key: str, value: Any, length: int) -> list[Any]:
    if not isinstance(value, list):
        _refuse(path, f"'{key}' is {_kind(value)}, not a list of {length}")
    if len(value) != length:
        _refuse(path, f"'{key}' has {len(value)} entries, not {length}")
    return value


def _name(path: Path, key: str, value: Any, most: int = LONGEST_NAME) -> str:
    if not isinstance(value, str) or not value.strip():
        _refuse(path, f"'{key}' is {brief(value)}, not a name")
    if not value.isprintable():  # a line break or an escape sequence would wreck every table
        _refuse(path, f"'{key}' is {brief(value)}, with characters that cannot be printed")
    if len(value) > most:
        _refuse(path, f"'{key}' is a name of {len(value)} characters; {most} at most")
    return value


def _optional_name(path: Path, key: str, value: Any, most: int = LONGEST_NAME) -> str:
    return "" if value is None or value == "" else _name(path, key, value, most)


def _headline(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(path, f"'headline' is {_kind(value)}, not an object of task: metric")
    return {
        _name(path, "headline", task): _name(path, f"headline[{brief(task)}]", metric)
        for task, metric in value.items()
    }


def _percents(path: Path, key: str, value: Any, tasks: tuple[str, ...]) -> Cells:
    cells = _list(path, key, value, len(tasks))
    return tuple(
        _number(path, f"{key}[{i}] ({task})", cell, 0.0)
        for i, (task, cell) in enumerate(zip(tasks, cells, strict=True))
    )


def _number(path: Path, key: str, value: Any, least: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(path, f"{key} is {brief(value)}, neither a number nor null")
    if not least - 1e-6 <= value <= 100 + 1e-6:  # false for NaN
        _refuse(path, f"{key} is {brief(value)}; it is a percent from {least:g} to 100, or null")
    return float(value)


def _measures(
    path: Path, key: str, data: dict[str, Any], count: int, most: float
) -> tuple[float, ...]:
    """Check a list of at most so many figures, from 0 to `most`; null is an empty one."""
    value = data.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > count:
        _refuse(path, f"'{key}' is {_kind(value)}, not a list of at most {count} figures")
    for i, figure in enumerate(value):
        number = isinstance(figure, int | float) and not isinstance(figure, bool)
        if not number or not 0 <= figure <= most:  # false for NaN
            _refuse(path, f"{key}[{i}] is {brief(figure)}, not a number from 0 to {most:g}")
    return tuple(map(float, value))


def _finished(path: Path, value: Any, run_is_complete: bool) -> bool:
    if value is None:
        return run_is_complete
    if not isinstance(value, bool):
        _refuse(path, f"'finished' is {brief(value)}, neither true nor false")
    if value and not run_is_complete:
        _refuse(path, "says it is finished, but its last row of scores has unmeasured cells")
    return value


def _agrees(path: Path, key: str, stored: Any, computed: Cells, convention: str) -> None:
    """Hold a stored list of OP or BWT against the one that the scores give."""
    if not isinstance(stored, list) or len(stored) != len(computed):
        found = f"has {len(stored)} entries" if isinstance(stored, list) else f"is {_kind(stored)}"
        _refuse(path, f"'{key}' {found}; the scores hold {len(computed)} learned tasks")
    for i, (value, ours) in enumerate(zip(stored, computed, strict=True)):
        value = _number(path, f"{key}[{i}]", value, -100.0)
        if value is not None and (ours is None or abs(value - ours) > ROUNDING):
            given = "do not give it" if ours is None else f"give {ours:.2f}"
            _refuse(path, f"{key}[{i}] is {value:g}, but the scores {given} ({convention})")
