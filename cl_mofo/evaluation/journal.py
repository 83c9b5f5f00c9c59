"""The answers to a test set so far, so that a run that is stopped within it need not ask again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple
from pathlib import Path

from cl_mofo.evaluation.answers import Answer
from cl_mofo.files import MOST_BYTES, DamagedError, checked_line, read_line
from cl_mofo.untrusted import open_regular


class Journal:
    """Answers by their examples' numbers, appended batch by batch.

    Args:
        folder: where; ranks write files of their own there, and read those of all.
        name: whose answers they are: after how many tasks, which was the last, and to which.
        rank: which rank this is.
    """

    def __init__(self, folder: Path, name: str, rank: int) -> None:
        self._folder, self.name = folder, name
        self._file = folder / f"{name}.{rank}.answers"

    def known(self, examples: int) -> dict[int, Answer]:
        """Return the answers that are there; what was not written to its end is left out.

        Args:
            examples: how many the test set has.
        """
        found: dict[int, Answer] = {}
        for file in sorted(self._folder.glob(f"{self.name}.*.answers")):
            for line in _lines(file):
                try:
                    rows = read_line(line, file.name).get("answers", [])
                    found |= {row[0]: Answer.of(row[1:]) for row in rows}
                except (DamagedError, TypeError, ValueError, LookupError):
                    continue
        return {i: found[i] for i in found if type(i) is int and 0 <= i < examples}

    def keep(self, answers: Mapping[int, Answer]) -> None:
        """Append a batch's answers.

        Raises:
            OSError: they cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = [[i, *astuple(answered)] for i, answered in answers.items()]
        with self._file.open("ab") as file:
            # What a killed process began to write ends here.
            file.write(b"\n" + checked_line({"answers": rows}) + b"\n")

    def clear(self) -> None:
        """Forget them all, once the test set is done."""
        for file in self._folder.glob(f"{self.name}.*.answers"):
            _remove(file)


def forget(folder: Path, learned: int = -1) -> None:
    """Remove the answers that journals in a folder have from after more than `learned` tasks."""
    for file in folder.glob("*.answers"):
        tasks = file.name.partition("-")[0]
        if not tasks.isdecimal() or int(tasks) > learned:
            _remove(file)


def _remove(file: Path) -> None:
    if file.is_symlink() or not file.is_dir():
        file.unlink(missing_ok=True)


def _lines(file: Path) -> Iterator[bytes]:
    """Yield a file's lines; what is no file, and could be read without end, makes room for one."""
    try:
        with open_regular(file) as opened:
            while line := opened.readline(MOST_BYTES):
                yield line
    except OSError:
        if not file.is_file():
            _remove(file)
