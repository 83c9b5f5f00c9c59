"""A random share of training rows: a small proxy on which hyperparameters can be chosen."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from cl_mofo.data.records import Record, Rows


def drawn(rows: Sequence[Record], share: float | None, seed: int, name: str) -> Sequence[Record]:
    """Return a share of some rows, drawn without replacement, in their order.

    What is drawn depends on the seed, the name and the number of rows alone: not on which tasks
    there are beside this one. Rows of a file stay there.

    Args:
        rows: the rows.
        share: ceil(share * rows) are drawn, the share taken as its decimal is written; more than 0,
            1 at most. None or 1 are all rows.
        seed: non-negative; another one draws other rows.
        name: of the task.
    """
    if share is None or share == 1:
        return rows
    count = math.ceil(Fraction(str(share)) * len(rows))
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chosen = sorted(generator.permutation(len(rows))[:count].tolist())
    return rows.at(chosen) if isinstance(rows, Rows) else [rows[i] for i in chosen]
