"""Each example's own headline score stands beside its answer."""

import json
from collections import Counter
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cl_mofo
from cl_mofo import mini
from cl_mofo.discovery import registry
from cl_mofo.evaluation import mark_unfinished, metrics, score
from cl_mofo.evaluation.rouge import rouge_l_f
from cl_mofo.evaluation.sari import sari_of
from cl_mofo.evaluation.scoring import example_scores
from cl_mofo.task import Task
from tests.small_run import SMALL, At, StoppedHereError, goes_on, stop

FIRST = registry().task("FOMC")


def own(measure):
    fields = {key: getattr(FIRST, key) for key in FIRST.__dataclass_fields__}
    return Task(**fields | {"headline": "f1", "metrics": ("f1",), "measure": measure})


def macro_f1(predictions, references, sources):
    shares = []
    for label in {*references}:
        hits = sum(p == r == label for p, r in zip(predictions, references, strict=True))
        given, right = Counter(predictions)[label], Counter(references)[label]
        shares.append(200 * hits / (given + right))
    return {"f1": fmean(shares)}


def test_a_metric_of_a_corpus_has_no_score_of_one_example():
    said, right = ["A", "B", "B", "A"], ["A", "A", "A", "B"]
    task = own(macro_f1)
    whole = score(task, said, right)["f1"]
    assert whole == pytest.approx((200 * 1 / 5 + 0) / 2)
    assert example_scores(task, said, right, None, whole) is None


def test_a_metric_that_fails_on_one_example_is_one_of_a_corpus():
    def spread(predictions, references, sources):
        return {"f1": 100 / (len(predictions) - 1)}

    assert example_scores(own(spread), ["A", "B"], ["A", "A"], None, 100.0) is None
    nan = own(lambda predictions, references, sources: {"f1": float("nan")})
    assert example_scores(nan, ["A", "B"], ["A", "A"], None, 50.0) is None


ONE = {
    "FOMC": lambda said, right, prompt: 100.0 * (said == right),
    "ScienceQA": lambda said, right, prompt: 100.0 * (said[:1] == right[:1] != ""),
    "MeetingBank": lambda said, right, prompt: 100 * rouge_l_f(said, right) if said else 0.0,
    "20Minuten": lambda said, right, prompt: 100 * sari_of(prompt, said, right),
}


@pytest.mark.parametrize("name", ONE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_each_score_is_that_of_its_own_pair(name, data):
    task, rows = registry().task(name), mini.records()[name]["test"][:6]
    right, prompts = [row["answer"] for row in rows], [row["prompt"] for row in rows]
    answers = st.sampled_from([*right, "", "A", "no such thing."])
    said = data.draw(st.lists(answers, min_size=len(right), max_size=len(right)))
    sources = prompts if task.needs_sources else None
    whole = score(task, said, right, sources)[task.headline]
    found = example_scores(task, said, right, sources, whole)
    expected = [ONE[name](*triple) for triple in zip(said, right, prompts, strict=True)]
    assert found == pytest.approx(expected)
    assert fmean(found) == pytest.approx(whole)


def test_what_is_costly_is_measured_once():
    task = registry().task("ScienceQA")
    right = [row["answer"] for row in mini.records()["ScienceQA"]["test"][:8]]
    said = [f"{answer} once more, number {i}." for i, answer in enumerate(right)]
    costly = (metrics._rouge_l_f, metrics._sentence_bleu)
    whole = score(task, said, right)["accuracy"]
    before = [function.cache_info().misses for function in costly]
    assert example_scores(task, said, right, None, whole) == [100.0] * 8
    assert [function.cache_info().misses for function in costly] == before


def rows_of(folder):
    return {
        (file.parent.name, file.stem): [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(folder.glob("predictions/*/*.jsonl"))
    }


def scores_of(folder):
    return {key: [row["score"] for row in rows] for key, rows in rows_of(folder).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "whole"
    return folder, cl_mofo.run(SMALL, out=folder)


def test_a_runs_rows_have_their_scores(whole):
    folder, results = whole
    rows = rows_of(folder)
    cells = [results["initial"], *results["scores"]]
    states = sorted({state for state, _ in rows})
    assert len(states) == 3
    for (state, name), lines in rows.items():
        task = registry().task(name)
        cell = cells[states.index(state)][results["tasks"].index(name)]
        assert fmean(line["score"] for line in lines) == pytest.approx(cell, abs=1e-6)
        for line in lines:
            text = mark_unfinished([line["prediction"]], [line["finished"]], [line["reference"]])
            assert line["score"] == score(task, text, [line["reference"]])[task.headline]
    assert any(line["score"] > 0 for lines in rows.values() for line in lines)


def test_cut_answers_and_those_of_the_cache_score_the_same(whole, tmp_path, monkeypatch):
    (answers := tmp_path / "answers").mkdir()
    monkeypatch.setattr("cl_mofo.evaluation.answer_cache.cache_folder", lambda kind: answers)
    for name, changed in {
        "cut": {"metrics": "headline"},
        "kept": {"cache": True},
        "found": {"cache": True},
    }.items():
        cl_mofo.run(SMALL | {"evaluation": SMALL["evaluation"] | changed}, out=tmp_path / name)
        assert scores_of(tmp_path / name) == scores_of(whole[0])
    assert "are from the cache" in (tmp_path / "found" / "run.log").read_text()


def test_a_run_that_goes_on_ends_with_the_same_rows(whole, tmp_path):
    with pytest.raises(StoppedHereError):
        cl_mofo.run(SMALL, out=tmp_path / "stopped", observer=At(3, stop))
    goes_on(tmp_path / "stopped", whole[0])
    assert rows_of(tmp_path / "stopped") == rows_of(whole[0])


def test_a_run_with_a_corpus_metric_has_no_such_key(tmp_path):
    (tmp_path / "rarity.py").write_text(
        "import dataclasses\n"
        "from cl_mofo.tasks.fomc import TASK as FOMC\n"
        "def measure(predictions, references, sources):\n"
        "    return {'rarity': 100 / len(predictions)}\n"
        "TASK = dataclasses.replace(FOMC, name='Rare', suite='mine', headline='rarity',\n"
        "    metrics=('rarity',), measure=measure, settled=None, position=1)\n"
    )
    (tmp_path / "Rare").mkdir()
    for split in ("train", "eval", "test"):
        records = [{"prompt": f"{i}?", "answer": "AB"[i % 2]} for i in range(4)]
        (tmp_path / "Rare" / f"{split}.json").write_text(json.dumps(records))
    recipe = SMALL | {
        "imports": [str(tmp_path / "rarity.py")],
        "data": {"suite": "mine", "path": str(tmp_path)},
        "tasks": SMALL["tasks"] | {"only": ["Rare"]},
    }
    assert cl_mofo.run(recipe, out=tmp_path / "run")["op"] == [25.0]
    lines = [line for lines in rows_of(tmp_path / "run").values() for line in lines]
    assert len(lines) == 8
    assert not any("score" in line for line in lines)
