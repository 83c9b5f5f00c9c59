"""What each metric is, on cases small enough to work by hand."""

import math
import subprocess
import sys
import warnings

import pytest

from cl_mofo.errors import UserError
from cl_mofo.evaluation import mark_unfinished, score
from cl_mofo.evaluation.metrics import accuracy, bleu, rouge_l, sari, similarity
from cl_mofo.task import Task


def test_accuracy_is_exact_and_strips_nothing():
    # 2 of 8 are right: "A" and "7". Two empty texts are no match.
    predictions = ["A", "A ", "A\n", "a", "A.", "", "7", "7.0"]
    references = ["A", "A", "A", "A", "A", "", "7", "7"]
    assert accuracy(predictions, references) == 25.0


def test_bleu_1_clips_counts_and_punishes_brevity():
    # "the" counts min(2, 2), "cat" min(2, 1): 3 of 4. Brevity exp(1 - 6/4).
    got = bleu(["the cat the cat"], ["the cat sat on the mat"], 1)
    assert got == pytest.approx(100 * 3 / 4 * math.exp(-0.5))


def test_bleu_4_is_the_geometric_mean_of_four_precisions():
    # 4/5 * 3/4 * 2/3 * 1/2 = 1/5; as long as the reference, so no brevity penalty.
    got = bleu(["a b c d f"], ["a b c d e"], 4)
    assert got == pytest.approx(100 * 0.2**0.25)


def test_bleu_splits_words_at_white_space_and_full_stops():
    assert bleu(["a.b\nc"], ["a b c."], 1) == pytest.approx(100)


def test_bleu_without_a_common_4_gram_is_nothing_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bleu(["a b c x"], ["a b c d"], 4) == pytest.approx(0, abs=1e-9)


def test_bleu_of_full_stops_alone_is_0():
    assert bleu(["...", "a"], ["a", "."], 1) == 0


def test_rouge_l_counts_distinct_words_on_the_common_subsequence():
    # "a" and "c" of three distinct words each: precision = recall = f = 2/3.
    assert rouge_l(["a b c"], ["a x c"]) == pytest.approx(200 / 3)
    # One distinct word each, and it is common.
    assert rouge_l(["a a a a"], ["a"]) == pytest.approx(100)
    # Precision 1/2, recall 1: f = 2 * 1/2 / (3/2) = 2/3.
    assert rouge_l(["a b"], ["a"]) == pytest.approx(200 / 3)


def test_rouge_l_joins_what_every_pair_of_sentences_has_in_common():
    # As one sentence "a b c d" against "c d a b" would have two words in common, not four.
    assert rouge_l(["a b. c d"], ["c d. a b"]) == pytest.approx(100)
    assert rouge_l(["a b c d"], ["c d a b"]) == pytest.approx(50)


def test_rouge_l_follows_the_package_among_equally_long_subsequences():
    # "a a" and "c a" both are longest; only the second has two distinct words. Walking back from
    # the end, the package drops a word of the reference unless the prediction's is worth less.
    assert rouge_l(["a c a"], ["c a a"]) == pytest.approx(100)
    assert rouge_l(["c a a"], ["a c a"]) == pytest.approx(50)


@pytest.mark.parametrize("dots", [".", "...", "....."])
def test_rouge_l_of_full_stops_alone_is_0(dots):
    assert rouge_l([dots], ["a b"]) == rouge_l(["a b"], [dots]) == rouge_l([dots], [dots]) == 0


def test_similarity_is_difflibs_ratio_rounded_to_an_integer():
    # "ab" and "d" match: 2 * 3 / 8. Then "ab": 2 * 2 / 6 = 66.7, rounded.
    assert similarity(["abcd"], ["abed"]) == 75
    assert similarity(["abc"], ["abd"]) == 67
    # Each pair is rounded before the mean: (67 + 100 + 0) / 3.
    assert similarity(["abc", "x", ""], ["abd", "x", "y"]) == pytest.approx(167 / 3)


def test_similarity_takes_the_prediction_first():
    # difflib's own example of a ratio that depends on the order (its documentation, `ratio`).
    assert similarity(["tide"], ["diet"]) == 25
    assert similarity(["diet"], ["tide"]) == 50


def test_sari_by_hand():
    # source a b c, prediction a b d, reference a c d.
    # 1-grams: keep {a, b}, a is right: precision 1/2; of {a, c} to keep, a: recall 1/2; F1 1/2.
    #          delete {c}, wrong: 0. Add {d}, right and all there was: 1.              sum 1.5
    # 2-grams: keep {ab}, wrong, F1 0. Delete {bc}, right: 1. Add {bd}, not {ac, cd}: 0. sum 1
    # 3-grams: keep nothing, nothing to keep: 1. Delete {abc}: 1. Add {abd}: 0.          sum 2
    # 4-grams: there are none: 1, 1, 1.                                                  sum 3
    assert sari(["a b d"], ["a c d"], ["a b c"]) == pytest.approx(100 * 7.5 / 12)


def test_sari_counts_repeated_words():
    # source a a b, prediction a, reference a a.
    # 1-grams: keep {a}: precision 1; {a, a} to keep: recall 1/2; F1 2/3. Delete {a, b}, of which
    #          only b is right: 1/2. Add nothing: 1.
    # 2-grams: keep nothing: precision 1; {aa} to keep: recall 0; F1 0. Delete {aa, ab}: 1/2. Add 1.
    # 3-grams: keep 1, delete {aab}: 1, add 1. 4-grams: 3.  13/6 + 3/2 + 3 + 3 = 29/3
    assert sari(["a"], ["a a"], ["a a b"]) == pytest.approx(100 * 29 / 36)


def test_sari_lowers_case_and_splits_off_punctuation():
    plain = sari(["hello , wor ."], ["hello world ."], ["hello , dear world ."])
    assert sari(["Hello, wor."], ["hello World."], ["HELLO, dear world."]) == plain


def test_sari_takes_an_empty_prediction_as_it_is():
    # Of source a b, reference a, all orders: the empty text is one empty word to sacrebleu.
    # 1-grams: keep precision 1 (0/0), recall 0: 0. Delete {a, b}: 1/2. Add {""}, wrong: precision
    # 0, recall 1 (0/0): 0. 2-grams: keep 1, delete {ab}: 1, add 1. 3, 4: 3 each. 9.5 / 12
    assert sari([""], ["a"], ["a b"]) == pytest.approx(100 * 9.5 / 12)


def test_an_empty_prediction_counts_in_every_mean_but_saris():
    predictions, references = ["a b c d", ""], ["a b c d", "a b c d"]
    for of in (accuracy, rouge_l, similarity, lambda p, r: bleu(p, r, 4)):
        assert of(predictions, references) == pytest.approx(50)


def test_score_gives_the_declared_metrics_as_plain_floats():
    got = score("MeetingBank", ["a b c d"], ["a b c d"])
    assert list(got) == ["rouge-L", "bleu-1", "bleu-4"]
    assert all(type(value) is float for value in got.values())
    assert got == pytest.approx({"rouge-L": 100, "bleu-1": 100, "bleu-4": 100})


def _task(**changes):
    settings = {
        "name": "mine",
        "suite": "own",
        "position": 1,
        "language": "en",
        "epochs": 1,
        "headline": "accuracy",
        "metrics": ("accuracy",),
        "prompt_tokens": 8,
        "answer_tokens": 8,
        "measure": lambda p, r, s: {"accuracy": accuracy(p, r)},
        "source": "here",
        "sample": {"prompt": "x", "answer": "y"},
    }
    return Task(**(settings | changes))


def test_score_takes_a_task_of_ones_own_and_any_iterable():
    assert score(_task(), iter(["a", "b"]), (x for x in "ac")) == {"accuracy": 50.0}


def test_score_hands_the_sources_on():
    seen = []
    task = _task(measure=lambda p, r, s: seen.append(s) or {"accuracy": 0}, needs_sources=True)
    score(task, ["a"], ["b"], ["the prompt"])
    assert seen == [["the prompt"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("FOMCC", ["A"], ["A"]), "unknown task 'FOMCC'.*did you mean 'FOMC'"),
        (("FOMC", ["A"], ["A", "B"]), "FOMC.*1 predictions but 2 references"),
        (("20Minuten", ["A"], ["A"], ["p", "q"]), "1 predictions but 2 sources"),
        (("FOMC", [], []), "no predictions"),
        (("FOMC", "A", ["A"]), "predictions is one string"),
        (("FOMC", ["A", None], ["A", "B"]), r"predictions\[1\] is None, of type NoneType"),
        (("FOMC", ["A"], [3]), r"references\[0\] is 3, of type int"),
        (("20Minuten", ["A"], ["A"], [b"p"]), r"sources\[0\] is b'p', of type bytes"),
        (("20Minuten", ["A"], ["A"]), "20Minuten.*sari.*give the 1 prompts as sources"),
    ],
)
def test_score_refuses(arguments, words):
    with pytest.raises(UserError, match=words):
        score(*arguments)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"acc": 1.0}, "mine.*returned acc, but.*accuracy"),
        ({"accuracy": 1.0, "f1": 1.0}, "returned accuracy, f1"),
        ({"accuracy": math.nan}, "accuracy = nan"),
    ],
)
def test_score_refuses_a_measure_that_breaks_its_word(measured, words):
    with pytest.raises(UserError, match=words):
        score(_task(measure=lambda p, r, s: measured), ["a"], ["a"])


def test_scoring_loads_no_model_library():
    code = (
        "import sys\n"
        "from cl_mofo.evaluation import ResultMatrix, score\n"
        "score('20Minuten', ['a b'], ['a c'], ['a b c'])\n"
        "score('ScienceQA', ['A\\nbecause'], ['A\\nwhy'])\n"
        "score('Py150', ['x'], ['y'])\n"
        "print(*[m for m in ('torch', 'transformers', 'avalanche') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_an_unfinished_answer_never_equals_its_reference():
    predictions = ["7", "7", "7", "A B"]
    marked = mark_unfinished(predictions, [True, False, False, False], ["7", "7", "75", "A"])
    # Only the second was cut off *and* reads like the right answer.
    assert marked == ["7", "7…", "7", "A B"]
    assert accuracy(marked, ["7", "7", "75", "A"]) == 25
    assert predictions == ["7", "7", "7", "A B"]


def test_mark_unfinished_refuses_lists_of_different_lengths():
    with pytest.raises(UserError, match="2 predictions, 1 finished marks and 2 references"):
        mark_unfinished(["a", "b"], [True], ["a", "b"])
