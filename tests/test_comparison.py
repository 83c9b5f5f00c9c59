"""Runs compared with a baseline, example by example."""

import csv
import io
import json
import subprocess
import sys
from statistics import fmean, stdev

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cl_mofo
from cl_mofo.errors import UserError
from cl_mofo.report import compare, load_runs, render_comparison
from tests.report_runs import make
from tests.small_run import SMALL

TASKS = ("A", "B")


def written(folder, final, learned, **changes):
    """Write a run over two tasks, of which the last was just learned in the end."""
    scores = [[fmean(learned[0]), None], [fmean(final[0]), fmean(final[1])]]
    run = make(folder, scores, tasks=list(TASKS), headline=dict.fromkeys(TASKS, "f1"), **changes)
    cells = {"01-A/A": learned[0], "02-B/A": final[0], "02-B/B": final[1]}
    for name, values in cells.items():
        rows = [
            {"index": i, "prediction": "?", "reference": f"{name[-1]}{i}", "score": value}
            for i, value in enumerate(values)
        ]
        file = folder / "predictions" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


BASE = {"final": ([0, 0, 100], [0, 0]), "learned": ([100, 100, 100], None)}
BETTER = {"final": ([100, 100, 100], [0, 50]), "learned": ([100, 100, 0], None)}
# By hand, BASE:   OP (33.3 + 0)/2 = 16.7, BWT 33.3 - 100 = -66.7
#         BETTER:  OP (100 + 25)/2 = 62.5, BWT 100 - 66.7 = 33.3


@pytest.fixture
def runs(tmp_path):
    """Two seeds each of a baseline and a better strategy; the second seeds are equal."""
    return [
        written(tmp_path / "base1", **BASE, strategy="sequential", seed=1),
        written(tmp_path / "base2", **BASE, strategy="sequential", seed=2),
        written(tmp_path / "mofo1", **BETTER, strategy="mofo", seed=1),
        written(tmp_path / "mofo2", **BASE, strategy="mofo", seed=2),
    ]


def test_differences_by_hand(runs):
    found = compare(runs, "sequential", resamples=500)
    assert [(row.label, row.seed) for row in found.runs] == [
        ("sequential", 1),
        ("sequential", 2),
        ("mofo", 1),
        ("mofo", 2),
    ]
    assert [row.op.value for row in found.runs] == pytest.approx([50 / 3, 50 / 3, 62.5, 50 / 3])
    assert all(row.op.p is None for row in found.runs)
    first, second = found.differences
    assert first.op.value == pytest.approx(45.8333)
    assert first.bwt.value == pytest.approx(100)
    # In OP three examples differ, by 100/3/2 twice and 50/2/2, all one way: 2 of 8. In BWT the
    # three of A by 100/3 each: 2 of 8.
    assert (first.op.p, first.bwt.p) == (0.25, 0.25)
    assert (second.op, second.bwt) == ((0, 0, 0, 1), (0, 0, 0, 1))
    (mean,) = found.means
    assert (mean.label, mean.seeds) == ("mofo", (1, 2))
    assert mean.op == pytest.approx((fmean([45.8333, 0]), stdev([45.8333, 0])))
    assert mean.bwt == pytest.approx((50, stdev([100, 0])))


def test_intervals_are_as_wide_as_the_examples_say(runs):
    found = compare(runs, "sequential", confidence=0.999, resamples=4000)
    base, first = found.runs[0], found.differences[0]
    # All resampled from A alike: 0 0 0 or 100 100 100, which 1 of 27 draws is.
    assert base.op[1:3] == (0, 50)
    assert first.op[1:3] == pytest.approx((0, 75))
    assert (first.bwt.low, first.bwt.high) == pytest.approx((100, 100))
    narrow = compare(runs, "sequential", confidence=0.5, resamples=4000).runs[0].op
    assert 0 <= narrow.low <= narrow.value <= narrow.high <= 50
    assert narrow.high - narrow.low < 50


def test_an_interval_without_width_is_no_certainty(runs, tmp_path):
    assert any("without width" in note for note in compare(runs, "sequential", resamples=9).notes)
    varied = {"final": ([100, 0, 100], [0, 50]), "learned": ([100, 100, 0], None)}
    other = written(tmp_path / "other", **varied, strategy="mofo", seed=1)
    found = compare([runs[0], other], "sequential", resamples=99)
    assert not any("without width" in note for note in found.notes)


def test_the_same_call_gives_the_same_figures_however_many_runs_there_are(runs):
    whole = compare(runs, "sequential", resamples=50)
    assert whole == compare(runs, "sequential", resamples=50)
    part = compare([runs[2], runs[0]], "sequential", resamples=50)
    assert part.differences[0] == whole.differences[0]
    back = compare(runs, "mofo", resamples=50).differences[0]
    assert back.op.value == -whole.differences[0].op.value
    assert back.op.p == whole.differences[0].op.p


def test_every_form_shows_every_row(runs):
    found = compare(runs, "sequential", resamples=100)
    markdown = render_comparison(found)
    assert "| mofo | 1 | +45.8 \\[" in markdown
    assert "| mofo | 2 | 0.0 \\[0.0, 0.0\\] | 1.000 |" in markdown
    assert "| mofo | 2 | +22.9 ± 32.4 | +50.0 ± 70.7 |" in markdown
    assert "95% percentile bootstrap" in markdown
    latex = render_comparison(found, "latex")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{table}") == 3
    assert r"mofo & 2 & $+22.9 \pm 32.4$ & $+50.0 \pm 70.7$ \\" in latex
    assert latex.count("percentile bootstrap") == 1
    plain = render_comparison(found, "terminal")
    assert "differences from sequential" in plain
    assert "+50.0 ± 70.7" in plain
    rows = list(csv.DictReader(io.StringIO(render_comparison(found, "csv"))))
    assert [row["row"] for row in rows] == ["run"] * 4 + ["difference"] * 2 + ["mean difference"]
    assert rows[4]["OP"] == "45.8333"
    assert rows[4]["OP_p"] == "0.2500"
    assert (rows[6]["seeds"], rows[6]["BWT_std"]) == ("1 2", "70.7107")
    with pytest.raises(UserError, match="latex"):
        render_comparison(found, "pdf")


def test_one_run_alone_has_an_interval(runs):
    found = compare(runs[:1], "sequential", resamples=10)
    assert len(found.runs) == 1
    assert not found.differences
    assert "Seed by seed" not in render_comparison(found)


def test_one_task_has_no_bwt(tmp_path):
    for name in ("sequential", "mofo"):
        make(tmp_path / name, [[50.0]], tasks=["A"], strategy=name)
        (tmp_path / name / "predictions/01-A").mkdir(parents=True)
        rows = [{"index": i, "reference": "x", "score": 100 * i} for i in range(2)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / name / "predictions/01-A/A.jsonl").write_text(text)
    found = compare(load_runs([tmp_path]), "sequential", resamples=10)
    assert found.differences[0].op == (0, 0, 0, 1)
    assert found.differences[0].bwt == (None, None, None, None)
    assert "| mofo | 1 | 0.0 \\[0.0, 0.0\\] | 1.000 | – | – |" in render_comparison(found)


def test_what_is_left_out_is_said(runs, tmp_path):
    half = make(tmp_path / "half", [[50, None], [None, None]], tasks=list(TASKS), strategy="gem")
    lonely = written(tmp_path / "lonely", **BETTER, strategy="mofo", seed=7)
    notes = " ".join(compare([*runs, half, lonely], "sequential", resamples=10).notes)
    assert "unfinished: half" in notes
    assert "mofo, seed 7" in notes
    assert "4 p values" in notes


def test_variants_stand_apart(tmp_path, runs):
    for name, fraction in (("some", 0.1), ("more", 0.2)):
        run = written(tmp_path / name, **BETTER, strategy="mofo", seed=2)
        recipe = f"mofo: {{update_fraction: {fraction}}}\n"
        (run.path.parent / "recipe.yaml").write_text(recipe)
    found = load_runs([tmp_path / name for name in ("base1", "base2", "some", "more")])
    label = "mofo (mofo.update_fraction=0.2)"
    assert [row.label for row in compare(found, "sequential", resamples=9).means] == [
        "mofo (mofo.update_fraction=0.1)",
        label,
    ]
    assert compare(found, label, resamples=9).baseline == label
    with pytest.raises(UserError, match=r"several rows.*update_fraction=0\.1"):
        compare(found, "mofo")


def change(file, act):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    act(rows)
    file.write_text("\n".join(map(json.dumps, rows)))


def drop_scores(rows):
    for row in rows:
        del row["score"]


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (drop_scores, "no scores of single examples.*make it again.*f1 is none"),
        (lambda rows: rows[0].update(score=99), "its scores give"),
        (lambda rows: rows[0].update(score="100"), "line 1 has no score"),
        (lambda rows: rows[0].update(score=float("nan")), "line 1 has no score"),
        (lambda rows: rows[0].update(score=10**400), "line 1 has no score"),
        (lambda rows: rows[1].update(reference="other"), "test examples of B are not the same"),
        (lambda rows: rows.reverse(), "not that of example 0"),
        (lambda rows: rows.clear(), "not JSON"),
        (lambda rows: rows.append({"index": 2, "score": 25.0, "reference": "B2"}), "3 .* and 2"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(runs, act, told):
    change(runs[2].path.parent / "predictions/02-B/B.jsonl", act)
    with pytest.raises(UserError, match=told):
        compare(runs, "sequential", resamples=10)


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    def refused(told, *more, base="sequential", **options):
        with pytest.raises(UserError, match=told):
            compare([*runs[:2], *more], base, **options)

    refused(r"did you mean 'sequential'.*There are: sequential", base="sequentail")
    refused("confidence 95", confidence=95)
    refused("resamples 0", resamples=0)
    refused("resamples 10000000", resamples=10**7)
    seven = written(tmp_path / "seven", **BETTER, strategy="mofo", seed=7)
    refused(r"no other run has a seed of sequential's \(1, 2\)", seven)
    turned = make(tmp_path / "turned", [[1, None], [1, 1]], tasks=["B", "A"])
    refused("the tasks or their order are not the same .*A > B.*B > A", turned)
    refused(
        "suite or the model",
        make(tmp_path / "other", [[1, None], [1, 1]], tasks=["A", "B"], model="large"),
    )
    bare = make(tmp_path / "bare", [[1, None], [1, 1]], tasks=["A", "B"])
    refused("no such file", bare)
    away = make(tmp_path / "away", [[1, None], [1, 1]], tasks=["A", "../B"])
    with pytest.raises(UserError, match="none that a run can have"):
        compare([away], "mofo")
    with pytest.raises(UserError, match="no run is finished"):
        compare([make(tmp_path / "half", [[50, None], [None, None]])], "mofo")


def test_changed_data_are_refused(runs):
    for run, digest in ((runs[0], "aa"), (runs[2], "bb")):
        told = {"data": {"A/train.json": digest, "A/test.json": "same", "B/test": digest}}
        (run.path.parent / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="test examples of B are not the same"):
        compare([runs[0], runs[2]], "sequential", resamples=10)


def test_a_tunings_runs_beside_runs_on_the_test_split_are_left_out(runs, tmp_path):
    tuned = [
        written(tmp_path / f"tuned{i}", **BETTER, strategy="sequential", seed=2) for i in range(2)
    ]
    for i, run in enumerate(tuned):
        recipe = f"evaluation: {{split: eval}}\noptimizer: {{lr: {i}}}\n"
        (run.path.parent / "recipe.yaml").write_text(recipe)
    paths = [run.path for run in runs]
    alone, beside = (
        compare(load_runs(found), "sequential", resamples=10)
        for found in (paths, [*paths, *(run.path for run in tuned)])
    )
    assert beside.runs == alone.runs
    assert beside.differences == alone.differences
    assert beside.notes == (*alone.notes, "Left out, as scored on validation data: 2 runs")
    only = compare(load_runs([tuned[0].path]), "sequential", resamples=10)
    assert (len(only.runs), only.runs[0].op.value) == (1, 62.5)
    assert any("validation" in note for note in only.notes)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two runs that test each task just after it was learned and all in the end."""
    folder = tmp_path_factory.mktemp("real")
    evaluation = SMALL["evaluation"] | {"initial": False, "tasks": "ends"}
    tasks = SMALL["tasks"] | {"only": ["FOMC", "NumGLUE-cm", "Py150"]}
    for strategy in ("sequential", "mofo"):
        recipe = {"strategy": strategy, "evaluation": evaluation, "tasks": tasks}
        cl_mofo.run(SMALL | recipe, out=folder / strategy)
    return folder


def test_real_runs_with_the_ends_of_the_matrix(real):
    runs = load_runs([real])
    assert runs[0].scores[1][0] is None
    found = compare(runs, "sequential", resamples=200)
    for run, row in zip(reversed(runs), found.runs, strict=False):
        assert row.op.value in [pytest.approx(other.op[-1]) for other in runs]
        assert row.bwt.value in [pytest.approx(other.bwt[-1]) for other in runs]
        assert row.seed == run.seed
    (difference,) = found.differences
    mofo, sequential = runs
    assert (mofo.strategy, sequential.strategy) == ("mofo", "sequential")
    assert difference.op.value == pytest.approx(mofo.op[-1] - sequential.op[-1])
    assert difference.bwt.value == pytest.approx(mofo.bwt[-1] - sequential.bwt[-1])


def test_the_command(real):
    def command(*arguments):
        words = [sys.executable, "-m", "cl_mofo", "compare", ".", *arguments]
        return subprocess.run(words, capture_output=True, text=True, cwd=real)

    done = command("--baseline", "sequential", "--resamples", "99")
    assert done.returncode == 0, done.stderr
    assert "differences from sequential" in done.stdout
    told = command("--baseline", "sequential", "--format", "csv", "--confidence", "0.9")
    assert told.stdout.startswith("row,strategy,seeds,OP,OP_low,OP_high,OP_p,OP_std,BWT")
    assert "90% percentile bootstrap" in told.stderr
    wrong = command("--baseline", "gem")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("cl-mofo: baseline gem: no finished run is of it")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
rows = st.fixed_dictionaries(
    {"index": st.just(0) | json_values, "score": st.just(100.0) | json_values},
    optional={"reference": st.just("A0") | json_values},
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=40)
    | st.lists(rows | json_values, max_size=3).map(lambda found: "\n".join(map(json.dumps, found)))
)
def test_whatever_stands_there_gives_figures_or_one_message(runs, content):
    file = runs[2].path.parent / "predictions/01-A/A.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = ""
    try:
        found = compare(runs[:3], "sequential", resamples=5)
    except UserError as error:
        told = str(error)
    else:
        assert abs(found.differences[0].bwt.value) <= 200
    assert "\n" not in told
