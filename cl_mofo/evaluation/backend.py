"""What generates answers: a batch of token ids goes in, and one of token ids comes out.

There are two: `decoding.py`, a loop of our own over the model's cache, and `library.py`,
transformers' `generate` for the models that need it. Another is a file with a class of this form
and a line in `generate.backend_for`. It decodes greedily, or samples as its `EvaluationConfig`
says with draws that each `Question.seed` determines (in `library.py` the first one's, for all of a
batch), and ends an answer with the first end-of-sequence id or at its budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cl_mofo.data.tokenise import Encoder


@dataclass(frozen=True)
class Question:
    """What is asked.

    Args:
        prompt: token ids.
        reference: ids of the right answer, whose loss is wanted; None if it is not.
        seed: of this question's draws.
        settled: whether an answer so far, as text, decides the headline metric; None if all of an
            answer is wanted.
    """

    prompt: Sequence[int]
    reference: Sequence[int] | None = None
    seed: int = 0
    settled: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Generated:
    """What comes back.

    Args:
        ids: of the answer; its last is the end of sequence, unless the budget was spent before or
            it was `settled`.
        settled: whether it was ended because it was.
        loss: of the reference, in nats, summed over its ids; None if it was not wanted, or the
            backend does not give it.
    """

    ids: Sequence[int]
    settled: bool = False
    loss: float | None = None


class Backend(Protocol):
    """Generates answers of one model."""

    def generate(self, batch: Sequence[Question]) -> list[Generated]:
        """Answer questions, longest prompt first; the answers keep their order."""


def budget(encoder: Encoder) -> int:
    """Return how many ids are generated at most.

    TRACE counts the end of sequence into the budget; otherwise the answer has it all.
    """
    return encoder.answer_tokens + (0 if encoder.joint else 1)
