"""The metrics against figures and code of others: TRACE's figures, the `rouge` package, properties.

`../shared/parity/trace_metrics.json` holds predictions and references with the figures that TRACE's
code prints for them; tests that read it are skipped where it is absent.
"""

import json
import random
import string
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge import Rouge

from cl_mofo.discovery import registry
from cl_mofo.evaluation import mark_unfinished, score
from cl_mofo.evaluation.metrics import accuracy, bleu, rouge_l, sari, similarity
from cl_mofo.evaluation.rouge import rouge_l_f

PARITY = Path(__file__).parents[2] / "shared" / "parity" / "trace_metrics.json"
TASKS = ["C-STANCE", "FOMC", "MeetingBank", "Py150"]
TASKS += ["ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"]

# Three words and much white space make many equally long common subsequences and odd sentences.
dense = st.text(alphabet="abc  ..\n", max_size=24)
words = st.lists(st.sampled_from(["a", "b", "c", "d", "e.", "Über"]), min_size=1, max_size=12)
sentence = words.map(" ".join)
answers = st.lists(st.tuples(sentence, sentence, sentence), min_size=1, max_size=5)
quick = settings(max_examples=300, deadline=None, derandomize=True)


def _parity():
    if not PARITY.is_file():
        pytest.skip(f"TRACE's figures are not at {PARITY}")
    return json.loads(PARITY.read_text(encoding="utf-8"))


def _rouge_package(prediction, reference):
    # TRACE hands the reference over first.
    scores = Rouge(metrics=["rouge-l"]).get_scores(reference, prediction, avg=True)
    return scores["rouge-l"]["f"]


@pytest.mark.parametrize("task", TASKS)
def test_scores_equal_traces_own(task):
    given_ = _parity()[task]
    got = score(task, given_["predictions"], given_["references"], given_["prompts"])
    # TRACE prints similarity and SARI from 0 to 100, the others from 0 to 1.
    want = {
        metric: value * (1 if metric in ("similarity", "sari") else 100)
        for metric, value in given_["expected"].items()
    }
    assert got == pytest.approx(want, abs=1e-6, rel=0)


@pytest.mark.parametrize("task", ["MeetingBank", "ScienceQA", "20Minuten"])
def test_rouge_l_equals_the_package_on_each_pair(task):
    given_ = _parity()[task]
    for prediction, reference in zip(given_["predictions"], given_["references"], strict=True):
        prediction, reference = prediction[:1000], reference[:1000]
        assert rouge_l_f(prediction, reference) == _rouge_package(prediction, reference)


@quick
@given(dense, dense)
@example("a c a", "c a a")
@example(" ", " . a")
@example("a. .b", "b..a")
def test_rouge_l_equals_the_package_or_is_0_where_it_fails(prediction, reference):
    try:
        want = _rouge_package(prediction, reference)
    except ValueError:
        want = 0.0
    assert rouge_l_f(prediction, reference) == want


@settings(quick, max_examples=100)
@given(st.text(max_size=40), st.text(max_size=40))
def test_rouge_l_equals_the_package_on_any_text(prediction, reference):
    try:
        want = _rouge_package(prediction, reference)
    except ValueError:
        want = 0.0
    assert rouge_l_f(prediction, reference) == want


def test_rouge_l_takes_long_sentences_at_which_the_package_fails():
    draw = random.Random(0)
    left, right = (" ".join(draw.choices(string.ascii_letters, k=700)) for _ in range(2))
    limit = sys.getrecursionlimit()
    with pytest.raises(RecursionError):
        _rouge_package(left, right)
    try:
        sys.setrecursionlimit(10_000)
        want = _rouge_package(left, right)
    finally:
        sys.setrecursionlimit(limit)
    assert rouge_l_f(left, right) == want


def test_rouge_l_of_thousands_of_words_takes_no_time_to_speak_of():
    draw = random.Random(1)
    vocabulary = [f"w{i}" for i in range(3000)]
    one_sentence = [" ".join(draw.choices(vocabulary, k=6000)) for _ in range(2)]
    many = [
        ". ".join(" ".join(draw.choices(vocabulary, k=15)) for _ in range(200)) for _ in range(2)
    ]
    start = time.process_time()
    assert 0 < rouge_l_f(*one_sentence) < 1
    assert 0 < rouge_l_f(*many) < 1
    # 0.2 s when written; a table of 36 million cells in Python would take half a minute.
    assert time.process_time() - start < 5


def _measures():
    yield lambda p, r, s: accuracy(p, r)
    yield lambda p, r, s: rouge_l(p, r)
    yield lambda p, r, s: bleu(p, r, 1)
    yield lambda p, r, s: bleu(p, r, 4)
    yield lambda p, r, s: similarity(p, r)
    yield sari


@settings(quick, max_examples=60)
@given(answers, st.randoms(use_true_random=False))
def test_a_mean_lies_from_0_to_100_and_knows_no_order(triples, chance):
    shuffled = list(triples)
    chance.shuffle(shuffled)
    for measure in _measures():
        figure = measure(*zip(*triples, strict=True))
        assert 0 <= figure <= 100 + 1e-9
        assert figure == pytest.approx(measure(*zip(*shuffled, strict=True)))


@settings(quick, max_examples=60)
@given(words.filter(lambda w: len(w) >= 4).map(" ".join), st.permutations("abcdef"))
def test_a_text_is_all_right_against_itself(text, letters):
    # 4 words, so that BLEU-4 has something to count. A source without repeated words, because SARI
    # takes a word that is deleted once and kept once for wrongly deleted.
    source = " ".join(letters)
    for measure in _measures():
        # ROUGE-L's f falls short of 100 by 5e-7.
        assert measure([text], [text], [source]) == pytest.approx(100, abs=1e-6)


@settings(quick, max_examples=60)
@given(answers, answers)
def test_the_mean_of_two_halves_is_weighted_by_their_sizes(some, others):
    both = some + others
    for measure in _measures():
        a, b, c = (measure(*zip(*part, strict=True)) for part in (some, others, both))
        assert c * len(both) == pytest.approx(a * len(some) + b * len(others))


@quick
@given(st.text("ab…", max_size=3), st.booleans(), st.text("ab…", max_size=3))
def test_mark_unfinished_touches_nothing_but_lucky_cuts(before, finished, right):
    (after,) = mark_unfinished([before], [finished], [right])
    assert after == before if finished else after != right
    assert after == before or before == right


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_of_a_task_has_an_official_figure(task):
    assert set(_parity()[task]["expected"]) == set(registry().task(task).metrics)
