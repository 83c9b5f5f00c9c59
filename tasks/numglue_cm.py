"""NumGLUE-cm: arithmetic that needs a fact of everyday life.

    Solve the following math problem.
    Question:
    An garage has 14 bike wheels. How many bikes he can assemble using 14 wheels?
    Answer:                                                                   -> 7

NumGLUE's first task (commonsense and arithmetic): that a bike has two wheels is not said. An answer
is the number alone, compared as text: 7.0 is wrong where 7 is right. TRACE's test set has 81
questions, so that one of them is worth 1.2 points.

Source: Mishra et al., "NumGLUE: A Suite of Fundamental yet Challenging Mathematical Reasoning
Tasks", ACL 2022; as in TRACE, Wang et al., arXiv 2310.06762.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_mofo.evaluation.metrics import accuracy, differs
from cl_mofo.task import Task


def measure(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> Mapping[str, float]:
    """Return the exact-match accuracy of the numbers, in percent."""
    return {"accuracy": accuracy(predictions, references)}


TASK = Task(
    name="NumGLUE-cm",
    suite="trace",
    position=6,
    language="en",
    epochs=5,
    headline="accuracy",
    metrics=("accuracy",),
    prompt_tokens=1024,
    answer_tokens=32,  # the longest answer has 18 digits, 19 of Llama's tokens
    measure=measure,
    settled=differs,
    source="Mishra et al., ACL 2022; TRACE, arXiv 2310.06762",
    sample={
        "prompt": "Solve the following math problem.\nQuestion:\nAn garage has 14 bike wheels. "
        "How many bikes he can assemble using 14 wheels?\nAnswer:",
        "answer": "7",
    },
)
