"""With `evaluation.metrics=headline` less is generated, and the headline scores are the same."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cl_mofo
from cl_mofo import mini
from cl_mofo.config import EvaluationConfig, ModelConfig
from cl_mofo.data.tokenise import Encoder
from cl_mofo.discovery import registry
from cl_mofo.evaluation import mark_unfinished, score
from cl_mofo.evaluation.generate import answer
from cl_mofo.evaluation.metrics import differs
from cl_mofo.model import load_tokenizer
from cl_mofo.report import load_results, matrix_markdown
from tests.small_run import SMALL

CUT = ["C-STANCE", "FOMC", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds"]
RECORDS = [row for name in mini.TASKS for row in mini.records()[name]["test"][:2]]


def headline(task, answers, rows):
    references = [row["answer"] for row in rows]
    ended = [one.finished or one.settled for one in answers]
    texts = mark_unfinished([one.text for one in answers], ended, references)
    return score(task, texts, references)[task.headline]


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("budget", [3, 24])
def test_cut_answers_score_as_whole_ones(tiny, name, budget):
    task, encoder = registry().task(name), Encoder(tiny.tokenizer, 96, budget)
    config = EvaluationConfig(losses=False)
    whole = answer(tiny, encoder, RECORDS, config)
    # Every second reference is what the model says, so that some answers are right; of every
    # fourth, but the beginning, so that some are nearly so.
    rows = []
    for i, (row, one) in enumerate(zip(RECORDS, whole, strict=True)):
        said = (one.text[:-1] if i % 4 else one.text) or "?"
        rows.append({"prompt": row["prompt"], "answer": row["answer"] if i % 2 else said})
    cut = answer(tiny, encoder, rows, config, settled=task.settled)
    assert headline(task, cut, rows) == headline(task, whole, rows) > 0
    assert sum(one.tokens for one in cut) < sum(one.tokens for one in whole)
    for one, full in zip(cut, whole, strict=True):
        assert full.text.startswith(one.text)
        assert one.settled or one == full


def test_tasks_that_read_all_of_an_answer_have_it_all():
    assert [name for name in mini.TASKS if registry().task(name).settled] == CUT


TOKENIZER = load_tokenizer(ModelConfig(path="tiny"))


@settings(max_examples=200, deadline=None)
@given(st.text("Aé😀\ufffd中 \n7", min_size=1))
def test_no_beginning_of_the_right_answer_is_taken_for_a_wrong_one(text):
    encoder = Encoder(TOKENIZER, 96, 96)
    ids = encoder.text_ids(text)
    for end in range(len(ids) + 1):
        assert not differs(encoder.decode(ids[:end]).rstrip("\ufffd"), text)


def test_a_run_reports_the_headline_metric_alone(tmp_path):
    recipe = SMALL | {"tasks": {**SMALL["tasks"], "only": ["FOMC", "ScienceQA"]}}
    results = {}
    for metrics in ("all", "headline"):
        evaluation = {**SMALL["evaluation"], "metrics": metrics}
        results[metrics] = cl_mofo.run(recipe | {"evaluation": evaluation}, out=tmp_path / metrics)
        assert results[metrics]["measured"] == metrics
    assert results["all"]["scores"] == results["headline"]["scores"]
    notes = {name: matrix_markdown(load_results(tmp_path / name)) for name in results}
    assert ["only until these were settled" in notes[n] for n in ("all", "headline")] == [0, 1]
    assert results["all"]["losses"] == results["headline"]["losses"]
    assert [set(cell) for cell in results["headline"]["metrics"][1]] == [{"accuracy"}] * 2
    assert len(results["all"]["metrics"][1][1]) == 4
    lines = (tmp_path / "headline/predictions/00-initial/ScienceQA.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row["settled"] and len(row["prediction"]) >= 1 for row in rows)
