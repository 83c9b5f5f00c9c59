"""The eight tasks of TRACE: their settings, their samples, and how their answers are read.

Tests that read real records from `../shared/trace-500` are skipped where it is absent.
"""

import inspect
import json
import sys
from pathlib import Path

import pytest

from cl_mofo.discovery import registry
from cl_mofo.evaluation import score

DATA = Path(__file__).parents[2] / "shared" / "trace-500"
SPLITS = ("train", "eval", "test")
# Order, epochs and headline metric of the published runs (TRACE; MoFO, appendix C.3).
PUBLISHED = [
    ("C-STANCE", "zh", 5, "accuracy"),
    ("FOMC", "en", 3, "accuracy"),
    ("MeetingBank", "en", 7, "rouge-L"),
    ("Py150", "python", 5, "similarity"),
    ("ScienceQA", "en", 3, "accuracy"),
    ("NumGLUE-cm", "en", 5, "accuracy"),
    ("NumGLUE-ds", "en", 5, "accuracy"),
    ("20Minuten", "de", 7, "sari"),
]
NAMES = [name for name, *_ in PUBLISHED]


def _module(name):
    return sys.modules[registry().task(name).measure.__module__]


def _records(task, splits=SPLITS):
    if not DATA.is_dir():
        pytest.skip(f"TRACE's data are not at {DATA}")
    files = [DATA / task / f"{split}.json" for split in splits]
    return [record for file in files for record in json.loads(file.read_text(encoding="utf-8"))]


def test_the_suite_is_traces_in_traces_order():
    tasks = registry().suite("trace")
    assert [(t.name, t.language, t.epochs, t.headline) for t in tasks] == PUBLISHED
    assert [t.position for t in tasks] == list(range(1, 9))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_measures_what_it_declares_on_its_own_sample(name):
    task = registry().task(name)
    # A right answer gets full marks, but for SARI, which depends on the prompt as well; the
    # prediction before it, empty, gets nothing.
    answer, prompt = task.sample["answer"], task.sample["prompt"]
    got = score(name, ["", answer], [answer, answer], [prompt, prompt])
    assert list(got) == list(task.metrics)
    assert all(got[m] == pytest.approx(50, abs=1e-6) for m in got if m != "sari")
    if "sari" in got:
        assert 50 < got["sari"] < 100


@pytest.mark.parametrize("name", NAMES)
def test_a_task_file_opens_with_its_sample_and_its_source(name):
    task = registry().task(name)
    text = inspect.getdoc(_module(name))
    assert text.startswith(f"{name}: ")
    assert "Source: " in text
    assert "arXiv 2310.06762" in text
    assert "arXiv 2310.06762" in task.source
    flat = " ".join(text.split())
    assert task.sample["answer"].split()[0] in flat
    assert " ".join(task.sample["prompt"].split()[:3]) in flat


@pytest.mark.parametrize("name", NAMES)
def test_the_sample_is_a_real_record(name):
    sample = registry().task(name).sample
    pieces = {key: text.strip("\n").split("...") for key, text in sample.items()}

    def fits(record):
        return all(
            record[key].startswith(parts[0]) and record[key].rstrip("\n").endswith(parts[-1])
            for key, parts in pieces.items()
        )

    assert any(fits(record) for record in _records(name))


@pytest.mark.parametrize("name", NAMES)
def test_real_answers_fit_the_budget(name):
    task = registry().task(name)
    longest = max(len(record["answer"]) for record in _records(name))
    # Llama's tokenizer spends at most this many tokens per character on the longest answers of
    # each task: digits and capitals one each, English prose one in four, German one in three.
    per_character = {"MeetingBank": 954 / 1100, "Py150": 65 / 140, "ScienceQA": 951 / 3317}
    per_character["20Minuten"] = 206 / 632
    # The first token may be a blank of its own.
    assert longest * per_character.get(name, 1) + 1 <= task.answer_tokens


@pytest.mark.parametrize("name", NAMES)
def test_real_answers_get_full_marks_against_themselves(name):
    task, records = registry().task(name), _records(name, ["test"])[:30]
    answers, prompts = ([r[key] for r in records] for key in ("answer", "prompt"))
    figure = score(name, answers, answers, prompts)[task.headline]
    # SARI blames the deletion of one of a word's two occurrences; it stays below 100.
    assert 90 < figure < 100 if name == "20Minuten" else figure == pytest.approx(100, abs=1e-6)


def test_scienceqa_reads_the_letter_and_the_reasons_apart():
    references = ["A\na b c d e", "A\na b c d e", "A\na b c d e", "B\n", "A\na b c d e"]
    predictions = ["A because", "A.a b c d e", "B\na b c d e", "B\n", "A"]
    got = score("ScienceQA", predictions, references)
    # The letter is the first character: wrong in the third only. The reasons begin at the third
    # character: "because", then twice all right, then nothing where nothing is asked (0), nothing.
    assert got["accuracy"] == 80
    assert got["bleu-4"] == pytest.approx(40)
    assert got["rouge-L"] == pytest.approx(40, abs=1e-6)


def test_scienceqa_takes_an_empty_answer_for_wrong():
    got = score("ScienceQA", ["", "A\nx"], ["A\nx", "A\nx"])
    assert got["accuracy"] == 50
    assert got["rouge-L"] == pytest.approx(50, abs=1e-6)


@pytest.mark.parametrize(
    ("code", "resolved"),
    [
        ("x = <NUM_LIT:42>", "x = 42"),
        ("x = <NUM_LIT>", "x = 0"),
        ("f ( '<STR_LIT>' , <STR_LIT:a b> )", "f ( '' , a b )"),
        ("c = <CHAR_LIT:x> <CHAR_LIT>", "c = x "),
        ("<STR_LIT:two\nlines>", "two\nlines"),
        ("<STR_LIT:>", ""),
        ("<STR_LIT:open", "<STR_LIT:open"),
        ("<INT_LIT:3>", "<INT_LIT:3>"),
        # The literal inside is found together with the outer's head, and stays.
        ("<STR_LIT:<NUM_LIT:1>>", "<NUM_LIT:1>"),
        # Found on its own as well, it is replaced wherever it now stands.
        ("<STR_LIT:<NUM_LIT:1>> <NUM_LIT:1>", "1 1"),
        # A bare placeholder goes first, and so is found inside another.
        ("<STR_LIT:a<NUM_LIT>>", "a0"),
    ],
)
def test_py150_resolves_literals_as_trace_does(code, resolved):
    assert _module("Py150").resolve_literals(code) == resolved


def test_py150_resolves_literals_in_both_texts_before_it_compares():
    got = score("Py150", ["x = <NUM_LIT:42>", "f ( '' )"], ["x = 42", "f ( '<STR_LIT>' )"])
    assert got == {"similarity": 100}


def test_py150_scores_a_line_that_resolves_to_nothing_0_even_if_right():
    assert score("Py150", ["<STR_LIT>"], ["<STR_LIT>"])["similarity"] == 0


def test_20minuten_compares_with_the_whole_prompt():
    # A word of the instruction in the answer is one kept, not one added.
    texts = ["Simplify Hund bellt ."], ["Der Hund bellt ."]
    bare = score("20Minuten", *texts, ["Der grosse Hund bellt laut ."])
    whole = score("20Minuten", *texts, ["Simplify: Der grosse Hund bellt laut ."])
    assert bare["sari"] != whole["sari"]
