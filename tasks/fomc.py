"""FOMC: is a sentence of the US Federal Reserve dovish, hawkish or neutral?

    What is the monetary policy stance for the following text? A. dovish, B. hawkish, C. neutral.
    Choose one from A, B and C.
    Text:
    We want to see lower unemployment.
    Stance:                                                                   -> A

The sentences come from minutes, press conferences and speeches of the Federal Open Market
Committee. About half of them are neutral: always answering C is right in every second case.

Source: Shah, Paturi and Chava, "Trillion Dollar Words: A New Financial Dataset, Task & Market
Analysis", ACL 2023; as in TRACE, Wang et al., arXiv 2310.06762.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_mofo.evaluation.metrics import accuracy, differs
from cl_mofo.task import Task


def measure(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> Mapping[str, float]:
    """Return the exact-match accuracy of the letters, in percent."""
    return {"accuracy": accuracy(predictions, references)}


TASK = Task(
    name="FOMC",
    suite="trace",
    position=2,
    language="en",
    epochs=3,
    headline="accuracy",
    metrics=("accuracy",),
    prompt_tokens=1024,
    answer_tokens=16,  # one letter; the room shows what a model says instead
    measure=measure,
    settled=differs,
    source="Shah et al., ACL 2023; TRACE, arXiv 2310.06762",
    sample={
        "prompt": "What is the monetary policy stance for the following text? A. dovish, "
        "B. hawkish, C. neutral. Choose one from A, B and C.\nText:\n"
        "We want to see lower unemployment.\nStance:",
        "answer": "A",
    },
)
