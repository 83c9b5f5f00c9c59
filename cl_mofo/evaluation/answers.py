"""An answer of a model, and what is measured with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Args:
        text: what was generated before the end of sequence.
        finished: whether the end of sequence came within the budget.
        tokens: tokens generated, the end of sequence included.
        settled: whether it was ended because no more of it was needed.
        loss: of the reference answer, in nats, summed over its tokens; None if not measured.
        supervised: tokens of the reference answer, the end of sequence included.
    """

    text: str
    finished: bool
    tokens: int
    settled: bool = False
    loss: float | None = None
    supervised: int = 0

    @classmethod
    def of(cls, row: Any) -> Answer:
        """Return the answer whose fields JSON held.

        Raises:
            TypeError: they are no answer's.
        """
        answer = cls(*row)
        measured = answer.loss is None or type(answer.loss) is float
        if not (
            isinstance(answer.text, str)
            and isinstance(answer.finished, bool)
            and type(answer.tokens) is int
            and isinstance(answer.settled, bool)
            and measured
            and type(answer.supervised) is int
        ):
            raise TypeError("no answer")
        return answer


Advance = Callable[[int, int], None]
"""Told how many more examples are done, and how many tokens were generated for them."""


def mean_loss(answers: Iterable[Answer]) -> float | None:
    """Return the mean loss per reference token, in nats; None if one has none."""
    measured = [(answer.loss, answer.supervised) for answer in answers]
    losses = [loss for loss, _ in measured if loss is not None]
    if len(losses) < len(measured):
        return None
    return math.fsum(losses) / sum(supervised for _, supervised in measured)
