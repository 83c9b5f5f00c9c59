"""SARI, the measure of text simplification, for one source, prediction and reference.

Xu et al., "Optimizing Statistical Machine Translation for Text Simplification", TACL 2016, in the
variant of the Hugging Face `evaluate` metric that TRACE uses: lower-cased 13a tokens, 0/0 = 1, and
the recall of kept n-grams over their counts. For n = 1..4, with S, P, R the multisets of n-grams of
source, prediction and reference:

    keep    F1 of  precision = mean over g in S&P of (S&P&R)[g] / (S&P)[g]
                   recall    = |S&P&R| / |S&R|
    delete  precision        = mean over g in S-P of (S-P-R)[g] / (S-P)[g]
    add     F1 over the distinct n-grams in P but not in S against those in R but not in S

SARI is the mean of the three, each a mean over n. An empty prediction scores 37 points on
TRACE's 20Minuten, as deletion is rewarded: read it beside the score of the untrained model.
"""

from __future__ import annotations

from collections import Counter

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

ORDERS = (1, 2, 3, 4)

Gram = tuple[str, ...]
Grams = Counter[Gram]

_tokenize = Tokenizer13a()


def sari_of(source: str, prediction: str, reference: str) -> float:
    """Return the SARI of one simplification against one reference, from 0 to 1.

    Args:
        source: the text to simplify; TRACE gives the whole prompt.
        prediction: the model's simplification; may be empty.
        reference: the right simplification.
    """
    texts = [_tokenize(text.lower()).split(" ") for text in (source, prediction, reference)]
    total = 0.0
    for n in ORDERS:
        before, after, right = (_ngrams(tokens, n) for tokens in texts)
        total += _keep(before, after, right) + _delete(before, after, right)
        total += _add(set(before), set(after), set(right))
    return total / (3 * len(ORDERS))


def _ngrams(tokens: list[str], n: int) -> Grams:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _keep(before: Grams, after: Grams, right: Grams) -> float:
    kept, to_keep = before & after, before & right
    good = kept & right
    precision = _mean_share(good, kept)
    recall = good.total() / to_keep.total() if to_keep else 1.0
    return _f1(precision, recall)


def _delete(before: Grams, after: Grams, right: Grams) -> float:
    deleted = before - after
    return _mean_share(deleted - right, deleted)


def _add(before: set[Gram], after: set[Gram], right: set[Gram]) -> float:
    added, to_add = after - before, right - before
    good = len(added & to_add)
    precision = good / len(added) if added else 1.0
    recall = good / len(to_add) if to_add else 1.0
    return _f1(precision, recall)


def _mean_share(good: Grams, of: Grams) -> float:
    return sum(good[gram] / count for gram, count in of.items()) / len(of) if of else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
