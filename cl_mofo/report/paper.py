"""The published figures that runs are compared with: the paper's Table 2."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, NamedTuple


class PaperFigures(NamedTuple):
    """One row of the paper's table, in percent, under this package's name for the strategy."""

    strategy: str
    op: float
    bwt: float


def strategy_key(name: str) -> tuple[str, ...]:
    """Return what two spellings of one combination share: `gem+mofo` and `mofo+gem` are one."""
    return tuple(sorted(part.strip() for part in name.split("+")))


def paper_table() -> dict[tuple[str, ...], PaperFigures]:
    """Return the paper's rows by `strategy_key`, in its order."""
    return {
        strategy_key(row["strategy"]): PaperFigures(row["strategy"], row["OP"], row["BWT"])
        for row in _data()["rows"]
    }


def paper_source() -> str:
    """Return where the figures come from and what was measured."""
    data = _data()
    return f"{data['source']} ({data['model']} on {data['data']})"


def _data() -> dict[str, Any]:
    text = files("cl_mofo.report").joinpath("paper.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
