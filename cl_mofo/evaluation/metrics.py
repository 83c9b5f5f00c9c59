"""The metrics of TRACE's tasks, over lists of predictions and references, in percent.

They give the figures of TRACE's own code (Wang et al., arXiv 2310.06762), its conventions included:
nothing is stripped; a pair whose prediction or reference is the empty string scores 0 and counts in
the mean (SARI takes it as it is). Where TRACE's code fails, they are defined; see `rouge`.

Every function takes two or three lists of equal length, at least 1; `cl_mofo.evaluation.score`
checks that. Higher is better throughout.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

from cl_mofo.evaluation.rouge import rouge_l_f
from cl_mofo.evaluation.sari import sari_of

REMEMBERED = 4096
"""Pairs whose figure is kept, as each is measured among all of a test set and then alone."""

_rouge_l_f, _sari_of = lru_cache(REMEMBERED)(rouge_l_f), lru_cache(REMEMBERED)(sari_of)


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the percentage of predictions that equal their reference, character by character."""
    return _mean(lambda p, r: 100.0 * (p == r), predictions, references)


def differs(answer: str, reference: str) -> bool:
    """Tell whether no text that begins with this answer equals the reference: `accuracy` is 0."""
    return not reference.startswith(answer)


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the mean ROUGE-L f in percent, as the package `rouge` 1.0.1 computes it."""
    return _mean(lambda p, r: 100.0 * _rouge_l_f(p, r), predictions, references)


def bleu(predictions: Sequence[str], references: Sequence[str], order: int) -> float:
    """Return the mean sentence BLEU in percent, of nltk, without smoothing.

    Args:
        predictions: the model's texts.
        references: one right text for each.
        order: the longest n-grams counted, all orders weighing the same (1 for BLEU-1).
    """
    with warnings.catch_warnings():
        # One warning for each order without a match; a figure without smoothing means just that.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"nltk\.")
        return _mean(lambda p, r: _sentence_bleu(p, r, order), predictions, references)


def similarity(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the mean edit similarity in percent, each pair's rounded to an integer.

    It is difflib's ratio (Ratcliff and Obershelp), which `fuzzywuzzy` falls back to without
    python-Levenshtein, as in TRACE; Levenshtein's ratio is about a point higher on code.
    """
    return _mean(_rounded_ratio, predictions, references)


def sari(predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> float:
    """Return the mean SARI in percent, of simplifications of `sources`."""
    triples = zip(sources, predictions, references, strict=True)
    return 100.0 * sum(_sari_of(*triple) for triple in triples) / len(predictions)


def _mean(
    percent: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[str]
) -> float:
    pairs = zip(predictions, references, strict=True)
    return sum(percent(p, r) for p, r in pairs if p and r) / len(predictions)


@lru_cache(REMEMBERED)
def _sentence_bleu(prediction: str, reference: str, order: int) -> float:
    # nltk takes a second and a half to import, and most tasks do without it.
    from nltk.translate.bleu_score import sentence_bleu

    weights = (1.0 / order,) * order
    return 100.0 * float(sentence_bleu([_words(reference)], _words(prediction), weights))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s.]+", text)


@lru_cache(REMEMBERED)
def _rounded_ratio(prediction: str, reference: str) -> float:
    return round(100 * difflib.SequenceMatcher(None, prediction, reference).ratio())
