"""NumGLUE-ds: arithmetic that needs a fact of chemistry or physics.

    Solve the following math problem.
    Question:
    Find the number of moles of NH4Cl formed on combining 1 mole of NH3 and 1 mole of HCl
    Answer:                                                                   -> 1

NumGLUE's second task (domain-specific and arithmetic). An answer is the number alone, compared as
text. TRACE's largest variant has 325 test questions.

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
    name="NumGLUE-ds",
    suite="trace",
    position=7,
    language="en",
    epochs=5,
    headline="accuracy",
    metrics=("accuracy",),
    prompt_tokens=1024,
    answer_tokens=32,  # as NumGLUE-cm; the longest answer has 5 characters, 6 of Llama's tokens
    measure=measure,
    settled=differs,
    source="Mishra et al., ACL 2022; TRACE, arXiv 2310.06762",
    sample={
        "prompt": "Solve the following math problem.\nQuestion:\nFind the number of moles of NH4Cl "
        "formed on combining 1 mole of NH3 and 1 mole of HCl\nAnswer:",
        "answer": "1",
    },
)
