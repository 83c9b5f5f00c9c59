"""What a task is: a name, budgets, and how its answers are measured.

A task holds no data. The records come from a suite (a TRACE folder, or the embedded `trace-mini`),
so one task file serves every variant of the data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Measure = Callable[[Sequence[str], Sequence[str], Sequence[str] | None], Mapping[str, float]]
"""(predictions, references, sources) -> {metric: percent}; sources are the prompts, or None."""
Settled = Callable[[str, str], bool]
"""(answer so far, reference) -> whether what follows can change the headline metric no more."""


@dataclass(frozen=True)
class Task:
    """One task of a sequence.

    Args:
        name: its name, also the name of its data folder.
        suite: the suite it belongs to; a suite's tasks run by default, others when named.
        position: its place in the suite's order, from 1.
        language: ISO 639-1 code of its answers, or "python" for code.
        epochs: training epochs in the suite's published setting.
        headline: the metric that enters OP and BWT; one of `metrics`.
        metrics: names of all metrics `measure` returns.
        prompt_tokens: most prompt tokens kept (the oldest are cut).
        answer_tokens: most answer tokens, the end-of-sequence token not counted.
        measure: computes the metrics, in percent, over lists of equal length. It is asked about a
            whole test set, then about each example alone: remember what is costly about a pair.
        source: where the data come from.
        sample: one real record, `{"prompt": ..., "answer": ...}`.
        needs_sources: whether `measure` reads the prompts.
        settled: with `evaluation.metrics=headline`, an answer is cut off as soon as
            settled(answer so far, reference) is true: whatever would have followed, `measure` must
            give the same headline metric for what there is then. It is asked after each token, with
            whole characters only. None: answers are generated to their ends.
    """

    name: str
    suite: str
    position: int
    language: str
    epochs: int
    headline: str
    metrics: tuple[str, ...]
    prompt_tokens: int
    answer_tokens: int
    measure: Measure
    source: str
    sample: Mapping[str, str]
    needs_sources: bool = False
    settled: Settled | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"task {self.name!r}: its name is a folder's name too; use letters, digits, '_', "
                f"'-' and '.', a letter or digit first"
            )
        if self.headline not in self.metrics:
            raise ValueError(
                f"task {self.name}: the headline metric '{self.headline}' is none of its metrics "
                f"({', '.join(self.metrics)})"
            )
        if min(self.epochs, self.prompt_tokens, self.answer_tokens) < 1:
            raise ValueError(
                f"task {self.name}: epochs ({self.epochs}), prompt_tokens ({self.prompt_tokens}) "
                f"and answer_tokens ({self.answer_tokens}) must be at least 1"
            )
