"""20Minuten: simplify a German news article.

    Provide a simplified version of the following paragraph in German.

    Paragraph:
    Corona, Terror-Gesetz und Trinkwasser: Der Bundesrat hat an seiner Sitzung vom 3. Februar ...

    Simplification:
        -> Mit fünf Vorlagen steht der Schweiz am 13. Juni ein grosser Abstimmungstag bevor. Das ...

From the Swiss newspaper 20 Minuten, whose articles open with a short plain summary. SARI compares
an answer with its prompt, the instruction included, and gives 37 points to an empty answer: look
at the score before training when you read it.

Source: Rios et al., "A New Dataset and Efficient Baselines for Document-level Text Simplification
in German", NewSum 2021; as in TRACE, Wang et al., arXiv 2310.06762.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_mofo.evaluation.metrics import bleu, rouge_l, sari
from cl_mofo.task import Task


def measure(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> Mapping[str, float]:
    """Return SARI, ROUGE-L, BLEU-1 and BLEU-4 of the simplifications, in percent."""
    if sources is None:
        raise ValueError("20Minuten: SARI needs the prompts as sources")
    return {
        "sari": sari(predictions, references, sources),
        "rouge-L": rouge_l(predictions, references),
        "bleu-1": bleu(predictions, references, 1),
        "bleu-4": bleu(predictions, references, 4),
    }


TASK = Task(
    name="20Minuten",
    suite="trace",
    position=8,
    language="de",
    epochs=7,
    headline="sari",
    metrics=("sari", "rouge-L", "bleu-1", "bleu-4"),
    prompt_tokens=1024,
    answer_tokens=512,  # up to 676 characters, 206 of Llama's tokens; others need more for German
    measure=measure,
    source="Rios et al., NewSum 2021; TRACE, arXiv 2310.06762",
    sample={
        "prompt": "Provide a simplified version of the following paragraph in German.\n\n"
        "Paragraph:\nCorona, Terror-Gesetz und Trinkwasser: Der Bundesrat hat an seiner Sitzung "
        "vom 3. Februar 2021 beschlossen, ...\n\nSimplification:",
        "answer": "Mit fünf Vorlagen steht der Schweiz am 13. Juni ein grosser Abstimmungstag "
        "bevor. Das Volk soll über CO2-, Covid-19- und das Anti-Terror-Gesetz befinden. ...\n",
    },
    needs_sources=True,
)
