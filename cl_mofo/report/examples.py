"""What a run's predictions say of single test examples: which they were, and how each scored.

`predictions/<after>/<task>.jsonl` beside `results.json` has a line per example, with its `score` in
percent and its `reference`. Two states are read: each task just after it was learned, and all of
them after the last.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cl_mofo.errors import UserError
from cl_mofo.evaluation.significance import Addends, addends
from cl_mofo.report.results import RunResults
from cl_mofo.report.settings import data_files
from cl_mofo.untrusted import MIB, read_bytes, shortened

MOST_BYTES = 1024 * MIB
MOST_SCORE = 1e6


@dataclass(frozen=True)
class RunExamples:
    """The test examples of a run.

    Args:
        run: the run.
        addends: what each example adds to OP and BWT.
        references: a digest of each task's right answers, in their order.
        files: the SHA-256 of each data file, by its name, as far as the run's manifest says.
    """

    run: RunResults
    addends: Addends
    references: tuple[str, ...]
    files: Mapping[str, str]

    @classmethod
    def of(cls, run: RunResults) -> RunExamples:
        """Read them.

        Args:
            run: a finished one.

        Raises:
            UserError: a file is missing or not what a run writes, it has no scores of single
                examples, or they are not those of which `results.json` has the mean.
        """
        final, learned, references = [], [], []
        for i in range(len(run.tasks)):
            last, right = _read(run, len(run.tasks) - 1, i)
            first, same = _read(run, i, i)
            if right != same:
                _refuse(_file(run, i, i), f"answers other examples than {_file(run, -1, i)}")
            final.append(last)
            learned.append(first)
            references.append(right)
        return cls(run, addends(final, learned), tuple(references), data_files(run.path.parent))

    def check_alike(self, other: RunExamples) -> None:
        """Refuse to compare with a run on other test examples.

        Args:
            other: of the same tasks in the same order, on the same split.

        Raises:
            UserError: it was tested on others.
        """
        for i in range(len(self.addends)):
            if apart := self._apart(other, i):
                raise UserError(
                    f"{self.run.path.parent} and {other.run.path.parent} cannot be compared by "
                    f"example: {apart}"
                )

    def _apart(self, other: RunExamples, i: int) -> str:
        """Say in what the test examples of a task differ; nothing if they do not."""
        task = self.run.tasks[i]
        counts = [str(len(of.addends[i])) for of in (self, other)]
        metrics = [run.headline.get(task, "") for run in (self.run, other.run)]
        for told, (one, another) in {
            "{} test examples of TASK and {}": counts,
            "TASK measured by {} and by {}": metrics,
        }.items():
            if one != another:
                return told.format(shortened(one), shortened(another)).replace("TASK", task)
        names = (f"{task}/{self.run.split}", f"{task}/{self.run.split}.json")
        known = [name for name in names if name in self.files and name in other.files]
        changed = any(self.files[name] != other.files[name] for name in known)
        if changed or self.references[i] != other.references[i]:
            return f"the test examples of {task} are not the same"
        return ""


def _file(run: RunResults, state: int, task: int) -> Path:
    """Return the file of a task's answers after the task at place `state`, from 0."""
    place = state % len(run.tasks)
    after = f"{place + 1:02d}-{run.tasks[place]}"
    return run.path.parent / "predictions" / after / f"{run.tasks[task]}.jsonl"


def _read(run: RunResults, state: int, task: int) -> tuple[NDArray[np.float64], str]:
    """Return the scores of a task's examples in a state, and the digest of its references."""
    file = _file(run, state, task)
    for name in (run.tasks[state], run.tasks[task]):
        if not re.fullmatch(r"\w[\w.-]*", name):  # a path would lead out of the run's folder
            _refuse(run.path, f"names the task {brief(name)}, which is none that a run can have")
    scores, digest = [], hashlib.sha256()
    for i, row in enumerate(_rows(file)):
        if not isinstance(row, dict) or row.get("index") != i:
            _refuse(file, f"line {i + 1} is not that of example {i}")
        if "score" not in row:
            _refuse(
                file,
                "has no scores of single examples. Either the run was made before they were kept: "
                f"make it again; or {run.headline.get(run.tasks[task], 'its metric')} is none of "
                "single examples, and there is nothing to resample",
            )
        score, right = row["score"], row.get("reference")
        number = type(score) in (int, float) and abs(score) <= MOST_SCORE  # false for NaN
        if not number or type(right) is not str:
            _refuse(file, f"line {i + 1} has no score that is a number, or no reference")
        scores.append(float(score))
        digest.update(json.dumps(right).encode())
    cell = run.scores[state][task]
    if not scores or cell is None or abs(np.mean(scores) - cell) > 1e-3:
        mean = f"{np.mean(scores):.3f}" if scores else "nothing"
        _refuse(file, f"its scores give {mean}, but {run.path.name} has {cell}: one was changed")
    return np.array(scores), digest.hexdigest()


def _rows(file: Path) -> list[Any]:
    try:
        lines = read_bytes(file, MOST_BYTES).decode("utf-8").removesuffix("\n").split("\n")
        return [json.loads(line) for line in lines]
    except FileNotFoundError:
        _refuse(file, "there is no such file, so that nothing is known of single examples")
    except OSError as error:
        _refuse(file, f"cannot be read ({error.strerror or error})")
    except (ValueError, RecursionError) as error:
        _refuse(file, f"is not JSON, line by line: {brief(str(error))}")


def _refuse(file: Path, what: str) -> NoReturn:
    raise UserError(f"{file}: {what}")
