"""MeetingBank: summarise the transcript of a city council meeting.

    Write a summary of the following meeting transcripts.
    Meeting transcripts:
    Agenda for accountable 1190 26 relating to property at CenterPoint. The committee recommends ...
    Summary:
        -> AN ORDINANCE relating to property at Sand Point; authorizing the Housing Director to ...

Transcripts run to 160,000 characters, and three in five examples exceed 1,536 tokens: what is kept
is the end of the transcript, TRACE's instruction at its beginning being cut with the rest.

Source: Hu et al., "MeetingBank: A Benchmark Dataset for Meeting Summarization", ACL 2023; as in
TRACE, Wang et al., arXiv 2310.06762.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cl_mofo.evaluation.metrics import bleu, rouge_l
from cl_mofo.task import Task


def measure(
    predictions: Sequence[str], references: Sequence[str], sources: Sequence[str] | None
) -> Mapping[str, float]:
    """Return ROUGE-L, BLEU-1 and BLEU-4 of the summaries, in percent."""
    return {
        "rouge-L": rouge_l(predictions, references),
        "bleu-1": bleu(predictions, references, 1),
        "bleu-4": bleu(predictions, references, 4),
    }


TASK = Task(
    name="MeetingBank",
    suite="trace",
    position=3,
    language="en",
    epochs=7,
    headline="rouge-L",
    metrics=("rouge-L", "bleu-1", "bleu-4"),
    prompt_tokens=1024,
    # Answers end at 1,100 characters; lists of section numbers make that up to 954 of Llama's
    # tokens, where TRACE's 512 cuts. 1024 + 1000 + the end fit TinyLlama's 2048 positions.
    answer_tokens=1000,
    measure=measure,
    source="Hu et al., ACL 2023; TRACE, arXiv 2310.06762",
    sample={
        "prompt": "Write a summary of the following meeting transcripts.\nMeeting transcripts:\n"
        "Agenda for accountable 1190 26 relating to property at CenterPoint. The committee "
        "recommends ...\nSummary:",
        "answer": "AN ORDINANCE relating to property at Sand Point; authorizing the Housing "
        "Director to execute an amendment to and partial termination of the lease ...",
    },
)
