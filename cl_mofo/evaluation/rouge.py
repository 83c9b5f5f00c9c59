"""ROUGE-L at summary level, for one pair of texts.

The figure is the `f` of the PyPI package `rouge` 1.0.1, which TRACE uses. A text is split into
sentences at full stops and into words at white space. With U the set of words that lie on a longest
common subsequence (LCS) of *some* sentence of the prediction and *some* sentence of the reference,

    precision = |U| / |distinct words of the prediction|
    recall    = |U| / |distinct words of the reference|
    f         = 2 precision recall / (precision + recall + 1e-8)

Two sentences may have several LCS with different words. The one counted is the one the package
finds when it is given the texts in TRACE's order, the reference first. The package recurses once
per word and so fails on long sentences; here the table of lengths is one integer of bits per word
(Hyyrö, "Bit-parallel LCS-length computation revisited", AWOCA 2004) and the way back is a loop.
"""

from __future__ import annotations


def rouge_l_f(prediction: str, reference: str) -> float:
    """Return the ROUGE-L f of one pair, from 0 to 1.

    Args:
        prediction: the model's text.
        reference: the right text.

    Returns:
        The package's f; 0 where a text holds nothing but full stops, for which the package raises
        `ValueError`.
    """
    ours, theirs = _sentences(prediction), _sentences(reference)
    if not ours or not theirs:
        return 0.0
    common: set[str] = set()
    for left in ours:
        for right in theirs:
            # A pair that shares no word beyond those already found cannot add one.
            if not common.issuperset(set(left).intersection(right)):
                common.update(_common_words(left, right))
    precision = len(common) / len({word for sentence in ours for word in sentence})
    recall = len(common) / len({word for sentence in theirs for word in sentence})
    return 2.0 * (precision * recall / (precision + recall + 1e-8))


def _sentences(text: str) -> list[tuple[str, ...]]:
    # White space between two full stops counts as a sentence of one empty word, as in the package.
    # Repeated sentences are dropped: only the set of words on an LCS is counted.
    words = (tuple(part.split()) or ("",) for part in text.split(".") if part)
    return list(dict.fromkeys(words))


def _common_words(left: tuple[str, ...], right: tuple[str, ...]) -> set[str]:
    """Return the words of one longest common subsequence, the one the package finds."""
    places: dict[str, int] = {}
    for j, word in enumerate(right):
        places[word] = places.get(word, 0) | 1 << j
    everything = (1 << len(right)) - 1

    # Bit j of rows[i] is 0 where the LCS of left[:i] grows from right[:j] to right[:j + 1].
    rows = [everything]
    for word in left:
        row, hits = rows[-1], rows[-1] & places.get(word, 0)
        rows.append(((row + hits) | (row - hits)) & everything)

    def length(i: int, j: int) -> int:
        return j - (rows[i] & ((1 << j) - 1)).bit_count()

    words: set[str] = set()
    i, j = len(left), len(right)
    while i and j:
        if left[i - 1] == right[j - 1]:
            i, j = i - 1, j - 1
            words.add(left[i])
        elif length(i - 1, j) > length(i, j - 1):
            i -= 1
        else:
            j -= 1
    return words
