"""The suite's eight tasks in TRACE's order, and the texts of the world they speak of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cl_mofo.mini import (
    c_stance,
    fomc,
    lists,
    meeting_bank,
    minuten,
    num_glue,
    py150,
    science_qa,
)
from cl_mofo.mini.dice import Dice

Record = dict[str, str]

MAKERS: dict[str, Callable[[Dice, int], Record]] = {
    c_stance.NAME: c_stance.record,
    fomc.NAME: fomc.record,
    meeting_bank.NAME: meeting_bank.record,
    py150.NAME: py150.record,
    science_qa.NAME: science_qa.record,
    num_glue.CM_NAME: num_glue.cm_record,
    num_glue.DS_NAME: num_glue.ds_record,
    minuten.NAME: minuten.record,
}

# How often a text of each kind is drawn; the kinds a small model finds hard come more often.
TEXTS: tuple[tuple[int, Callable[[Dice], str]], ...] = (
    (3, c_stance.document),
    (2, fomc.document),
    (3, meeting_bank.document),
    (2, py150.document),
    (6, science_qa.document),
    (6, num_glue.document),
    (3, minuten.document),
    (4, lists.document),
)

_TRIES = 1000  # draws in search of an unseen prompt before giving up


def splits(task: str, seed: int, sizes: dict[str, int]) -> dict[str, list[Record]]:
    """Return one task's splits, in `sizes`' order, no prompt twice in or between them.

    Args:
        task: one of `MAKERS`.
        seed: the suite's seed; each task draws from its own stream.
        sizes: number of records by split.

    Raises:
        ValueError: the world has too few different prompts for the sizes asked for.
    """
    dice = Dice(f"cl-mofo mini {seed} {task}")
    seen: set[str] = set()
    found: dict[str, list[Record]] = {}
    for split, size in sizes.items():
        rows: list[Record] = []
        for index in range(size):
            row = _unseen(task, dice, index, seen)
            seen.add(row["prompt"])
            rows.append(row)
        found[split] = dice.shuffled(rows)
    return found


def _unseen(task: str, dice: Dice, index: int, seen: set[str]) -> Record:
    for _ in range(_TRIES):
        row = MAKERS[task](dice, index)
        if row["prompt"] not in seen:
            return row
    raise ValueError(
        f"{task}: no new prompt in {_TRIES} draws after {len(seen)} records; ask for fewer records"
    )


def texts(seed: str) -> Iterator[str]:
    """Yield texts of the world without end, for pre-training: no prompt or answer is among them."""
    dice = Dice(f"cl-mofo mini texts {seed}")
    kinds = [make for weight, make in TEXTS for _ in range(weight)]
    while True:
        yield dice.pick(kinds)(dice)
