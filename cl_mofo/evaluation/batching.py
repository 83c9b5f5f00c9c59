"""Which examples of a test set are answered together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.tokenise import Encoder


def most_tokens(settings: EvaluationConfig, encoder: Encoder) -> int:
    """Return the tokens of a batch: those of `batch_size` examples of the full budgets."""
    return settings.batch_size * (encoder.prompt_tokens + encoder.answer_tokens + 1)


def batches(lengths: NDArray[np.int64], room: int, most: int) -> list[NDArray[np.int64]]:
    """Return indices in groups of similar lengths, the longest first: memory faults come early.

    Args:
        lengths: tokens of each.
        room: tokens that each will grow by.
        most: tokens of a group, padding and room included; one row alone may have more.
    """
    order = np.argsort(-lengths, kind="stable")
    found, start = [], 0
    while start < len(order):
        rows = max(1, most // (int(lengths[order[start]]) + room))
        found.append(order[start : start + rows])
        start += rows
    return found
