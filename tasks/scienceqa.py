"""ScienceQA: choose an answer to a school question and explain it.

    Choose an answer for the following question and give your reasons.

    Question:
    Select the mixture.

    Choices:
    A. sugar
    B. yogurt

    Answer:     -> B
                   A pure substance is made of only one type of matter.
                   A mixture is made of two or more types of matter mixed together.

Accuracy looks at the answer's first character; the reasons begin at the third and are compared as
text. Some examples have no reasons and score 0 there, as in TRACE.

Source: Lu et al., "Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question
Answering", NeurIPS 2022; as in TRACE, Wang et al., arXiv 2310.06762.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_mofo.evaluation.metrics import accuracy, bleu, rouge_l
from cl_mofo.task import Task


def measure(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> Mapping[str, float]:
    """Return the accuracy of the letters and ROUGE-L and BLEU of the reasons, in percent.

    An empty answer is wrong; TRACE's code stops with an error there.
    """
    chosen, right = [text[:1] for text in predictions], [text[:1] for text in references]
    reasons, reasons_right = [text[2:] for text in predictions], [text[2:] for text in references]
    return {
        "accuracy": accuracy(chosen, right),
        "rouge-L": rouge_l(reasons, reasons_right),
        "bleu-1": bleu(reasons, reasons_right, 1),
        "bleu-4": bleu(reasons, reasons_right, 4),
    }


TASK = Task(
    name="ScienceQA",
    suite="trace",
    position=5,
    language="en",
    epochs=3,
    headline="accuracy",
    metrics=("accuracy", "rouge-L", "bleu-1", "bleu-4"),
    prompt_tokens=1024,
    # Answers have up to 3,433 characters, 951 of Llama's tokens; one in twenty exceeds TRACE's 512
    # and would be learned without its end. 1024 + 1000 + the end fit TinyLlama's 2048 positions.
    answer_tokens=1000,
    measure=measure,
    settled=lambda answer, reference: answer != "",  # the letter is there
    source="Lu et al., NeurIPS 2022; TRACE, arXiv 2310.06762",
    sample={
        "prompt": "Choose an answer for the following question and give your reasons.\n\n"
        "Question:\nSelect the mixture.\n\nChoices:\nA. sugar\nB. yogurt\n\nAnswer:",
        "answer": "B\nA pure substance is made of only one type of matter.\n"
        "A mixture is made of two or more types of matter mixed together.",
    },
)
