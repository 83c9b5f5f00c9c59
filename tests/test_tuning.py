"""Which values a tuning chooses, what it does when runs fail, and how a user meets it."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console as RichConsole

import cl_mofo
from cl_mofo import experiment
from cl_mofo.claim import claim
from cl_mofo.console import Console
from cl_mofo.contest import Candidate, Contest, contests
from cl_mofo.errors import OutOfMemoryError, TrainingError, UserError
from cl_mofo.grid import plan_tuning
from cl_mofo.observer import Observer
from cl_mofo.recipes import read_request
from cl_mofo.report.tuning import tuning_table
from cl_mofo.resolve import resolve_request
from cl_mofo.several import Swept
from cl_mofo.sweep import plan_sweep
from cl_mofo.tuning import Tuned
from tests.forked import command

FRACTION, RATE = "mofo.update_fraction", "optimizer.lr"
TASKS = ["FOMC", "Py150"]
PROXY = {
    "data": {"suite": "trace-mini", "train_limit": 8, "eval_limit": 3, "test_limit": 4},
    "tasks": {"only": TASKS, "epochs": 1},
}
TWO = {"sweep": {"rows": [{"strategy": "sequential"}, {"strategy": "mofo"}]}}


def results(op, *, distance=0.5, learned=50.0, loss=1.0, count=25, seed=42):
    """Return a finished run's results, its OP the same on both tasks."""
    return {
        "seed": seed,
        "tasks": TASKS,
        "examples": {task: {"eval": count} for task in TASKS},
        "scores": [[op, None], [op, op]],
        "op": [op, op],
        "bwt": [None, -3.0],
        "learned": [op, learned],
        "distance": None if distance is None else [0.0, distance],
        "losses": [[loss, None], [loss, loss]],
    }


class Heard(Observer):
    """Keep what came out."""

    def tuned(self, tuned):
        self.heard = tuned


def tuned(monkeypatch, tmp_path, outcome, recipe=TWO, **options):
    """Tune with runs that come out as `outcome(recipe)` says; return what was heard, or raised."""
    monkeypatch.setattr(experiment, "run", lambda recipe, out, observer, resume: outcome(recipe))
    heard = Heard()
    try:
        options = {"grid": {RATE: [1e-3, 2e-3, 4e-3]}} | options
        assert cl_mofo.tune(recipe, out=tmp_path / "out", observer=heard, **options) is heard.heard
    except TrainingError as error:
        return heard.heard, str(error)
    return heard.heard, ""


SCORES = st.fixed_dictionaries(
    {
        "op": st.sampled_from([10.0, 20.0, 100 / 3]),
        "distance": st.sampled_from([None, 0.1, 0.2]),
        "learned": st.sampled_from([1.0, 2.0]),
        "loss": st.sampled_from([0.5, 0.25]),
    }
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.none() | SCORES, min_size=1, max_size=5),
    st.sampled_from(["op", "learned", "loss"]),
)
def test_the_best_has_the_best_score_then_the_smallest_distance_then_comes_first(tried, by):
    grid = {RATE: [i + 1 for i in range(len(tried))]}
    plan = plan_tuning(read_request(), grid)
    swept = Swept()
    for point, outcome in zip(plan.points, tried, strict=True):
        if outcome is None:
            swept.failed[point.name] = "not finite"
            swept.diverged.add(point.name)
        else:
            swept.results[point.name] = results(**outcome)
    (contest,) = contests(plan, swept, by)

    expected = None
    for i, outcome in enumerate(tried):  # the slow way: beats all before it
        if outcome is None:
            continue
        if expected is None:
            expected = i
            continue
        ours, theirs = outcome, tried[expected]
        gain = (ours[by] - theirs[by]) * (-1 if by == "loss" else 1)
        near, far = (math.inf if o["distance"] is None else o["distance"] for o in (ours, theirs))
        if gain > 0 or (gain == 0 and near < far):
            expected = i
    assert contest.best == expected
    states = ["diverged" if outcome is None else "finished" for outcome in tried]
    assert [candidate.state for candidate in contest.candidates] == states


def test_several_seeds_are_averaged_and_one_that_diverged_loses():
    plan = plan_tuning(read_request(assignments=["sweep.vary.seed=[1, 2]"]), {RATE: [1, 2, 3]})
    ops = {(1, 1): 50.0, (1, 2): 10.0, (2, 1): 40.0, (2, 2): 30.0, (3, 1): 99.0}
    swept = Swept(
        {
            point.name: results(ops[(point.varied[RATE], point.varied["seed"])])
            for point in plan.points[:5]
        },
        {plan.points[5].name: "not finite"},
        {plan.points[5].name},
    )
    (contest,) = contests(plan, swept, "op")
    assert [candidate.figures["op"] for candidate in contest.candidates] == [30.0, 35.0, None]
    assert contest.best == 1


@pytest.mark.parametrize(("percent", "count"), [(50.0, 25), (20.0, 40), (90.0, 16)])
def test_the_error_is_what_drawing_other_examples_would_make(percent, count):
    plan = plan_tuning(read_request(), {RATE: [1]})
    swept = Swept({plan.points[0].name: results(percent, count=count)})
    (contest,) = contests(plan, swept, "op")
    draws = np.random.default_rng(0).binomial(count, percent / 100, (20_000, 2)) / count * 100
    # Right or wrong is the metric with the largest variance of those with this mean.
    assert contest.candidates[0].error == pytest.approx(draws.mean(axis=1).std(), rel=0.03)


def test_a_score_below_0_has_no_such_error():
    plan = plan_tuning(read_request(), {RATE: [1]})
    (contest,) = contests(plan, Swept({plan.points[0].name: results(-20.0)}), "op")
    assert (contest.best, contest.candidates[0].error) == (0, None)


def test_each_strategy_gets_its_own_best_and_a_run_that_diverged_loses(monkeypatch, tmp_path):
    def outcome(recipe):
        if recipe.optimizer.lr == 4e-3:
            raise TrainingError("the loss is not finite")
        better = 1e-3 if recipe.strategy == "mofo" else 2e-3
        return results(60.0 if recipe.optimizer.lr == better else 40.0)

    found, told = tuned(monkeypatch, tmp_path, outcome)
    assert told == ""
    assert [(contest.name, contest.best) for contest in found.contests] == [
        ("sequential", 1),
        ("mofo", 0),
    ]
    assert found.contests[0].candidates[2].state == "diverged"
    assert found.examples == 50
    best = plan_sweep(read_request(str(found.best)))
    assert {name: recipe.optimizer.lr for name, recipe in best.items()} == {
        "sequential": 2e-3,
        "mofo": 1e-3,
    }
    assert found.best.read_text().startswith("# Chosen by cl-mofo tune")


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (TrainingError("not finite"), "diverged", "every run of mofo diverged"),
        (OutOfMemoryError("too large"), "failed", "too large"),
        (RuntimeError("broken"), "failed", r"broken (RuntimeError; more in its run.log)"),
    ],
)
def test_without_a_best_no_recipe_is_written(monkeypatch, tmp_path, error, state, message):
    def outcome(recipe):
        if recipe.strategy == "mofo":
            raise error
        return results(50.0)

    found, told = tuned(monkeypatch, tmp_path, outcome)
    assert message in told
    assert {candidate.state for candidate in found.contests[1].candidates} == {state}
    assert found.contests[0].best == 0
    assert found.best is None
    assert not (tmp_path / "out" / "best.yaml").exists()
    text = io.StringIO()
    Console(RichConsole(file=text, width=200)).tuned(found)
    (tmp_path / "out" / "best.yaml").write_text("strategy: mofo\n")
    Console(RichConsole(file=text, width=200)).tuned(found)
    assert text.getvalue().count("No recipe is written") == 2
    assert text.getvalue().count("the best.yaml there is of before") == 1


def test_what_another_process_runs_is_waited_for(monkeypatch, tmp_path):
    with claim(tmp_path / "out" / "mofo-optimizer.lr=0.002-seed42"):
        found, _ = tuned(monkeypatch, tmp_path, lambda recipe: results(50.0))
    assert [contest.best for contest in found.contests] == [0, None]
    assert found.contests[1].candidates[1].state == "running"
    assert found.best is None
    again, _ = tuned(monkeypatch, tmp_path, lambda recipe: results(50.0))
    assert again.best == tmp_path / "out" / "best.yaml"


def test_what_it_goes_by_must_be_measured(tmp_path):
    with pytest.raises(UserError, match="choose op, learned, loss"):
        cl_mofo.tune(grid={RATE: [1, 2]}, by="bwt", out=tmp_path / "out")
    request = read_request(assignments=["evaluation.losses=false"])
    with pytest.raises(UserError, match=r"evaluation\.losses is false"):
        cl_mofo.tune(request, grid={RATE: [1, 2]}, by="loss", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A tuning of two strategies on the embedded suite: its result, and what a terminal shows."""
    folder = tmp_path_factory.mktemp("tuned")
    file = folder / "two.yaml"
    file.write_text(yaml.safe_dump(PROXY | TWO))
    text = io.StringIO()
    options = {"grid": {FRACTION: [0.1, 0.5]}, "share": 0.5, "out": folder / "out"}
    console = Console(RichConsole(file=text, width=100))
    return cl_mofo.tune(str(file), observer=console, **options), text.getvalue(), file, options


def test_only_validation_examples_are_answered(real):
    found, _, _, options = real
    names = ["sequential-seed42", "mofo-mofo.update_fraction=0.1-seed42"]
    for name in names:
        folder = options["out"] / name
        stored = json.loads((folder / "results.json").read_text())
        assert stored["split"] == "eval"
        assert stored["initial"] is None
        assert stored["examples"]["FOMC"] == {"train": 8, "eval": 3, "test": 4}
        answers = (folder / "predictions" / "02-Py150" / "FOMC.jsonl").read_text().splitlines()
        assert len(answers) == 3
        assert not (folder / "model").exists()
    figures = found.contests[1].candidates[0].figures
    assert figures["op"] == stored["op"][-1]
    assert figures["distance"] == stored["distance"][-1]
    assert figures["loss"] == pytest.approx(np.mean(stored["losses"][-1]))
    assert found.examples == 6


def test_the_same_command_runs_nothing_again_and_shows_the_same(real):
    found, shown, file, options = real
    before = found.best.read_bytes()
    text = io.StringIO()
    again = cl_mofo.tune(str(file), observer=Console(RichConsole(file=text, width=100)), **options)
    assert again == found
    assert text.getvalue().count("skipped, already finished") == 3
    assert "run 2 of 3: mofo-mofo.update_fraction=0.1-seed42\n" in shown
    assert found.best.read_bytes() == before
    table = shown[shown.index("strategy ") :]
    assert table == text.getvalue()[text.getvalue().index("strategy ") :]
    assert "data.train_share=0.5" in table
    assert f"cl-mofo run {options['out']}/best.yaml\n" in table
    imported = replace(found, imports=[Path("my own.py")], alone={})
    Console(RichConsole(file=text, width=100)).tuned(imported)
    assert text.getvalue().endswith("/best.yaml --import 'my own.py'\n")


def test_the_best_recipe_scores_the_test_split_on_all_rows(real):
    found, *_ = real
    for recipe in plan_sweep(read_request(str(found.best))).values():
        assert recipe.evaluation.split == "test"
        assert recipe.data.train_share is None


def candidate(value, op, error=7.0):
    figures = {"op": op, "bwt": -1.0, "learned": 50.0, "distance": 0.001, "loss": 1.0}
    return Candidate({RATE: value}, figures, error, "finished")


def shown(contest, grid, width=80):
    console = RichConsole(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(tuning_table(Tuned([contest], "op", grid, [1, 2], 50, None, {}, None)))
    return capture.get()


@pytest.mark.parametrize(
    ("values", "best", "told"),
    [
        ([1e-3, 2e-3, 4e-3], 0, "0.001: try smaller values"),
        ([1e-3, 2e-3, 4e-3], 2, "0.004: try larger values"),
        ([4e-3, 1e-3, 2e-3], 0, "0.004: try larger values"),
        ([1e-3, 2e-3, 4e-3], 1, ""),
        (["cosine", "linear"], 0, ""),
        ([1e-3], 0, ""),
        ([False, True], 1, ""),
    ],
)
def test_a_best_value_at_the_end_of_the_grid_is_told(values, best, told):
    ops = [90.0 if i == best else 10.0 for i in range(len(values))]
    contest = Contest("mofo", [candidate(v, op) for v, op in zip(values, ops, strict=True)], best)
    table = " ".join(shown(contest, {RATE: values}).split())
    assert ("The grid ends at the best optimizer.lr of mofo" in table) == bool(told)
    assert told in table
    assert "Not clear" not in table


def test_others_within_an_error_of_the_best_are_told():
    contest = Contest("mofo", [candidate(1, 50.0), candidate(2, 56.9), candidate(3, 49.8)], 1)
    table = " ".join(shown(contest, {RATE: [1, 2, 3]}).split())
    assert "mofo (1 of 2; 7.0 points)" in table


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width, real):
    found, *_ = real
    console = RichConsole(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(tuning_table(found))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    (best,) = (line for line in lines if line.startswith("sequential"))
    assert best.endswith("best")


def test_a_setting_that_nobody_has_at_work_is_refused_on_the_command_line_alone(tmp_path):
    with pytest.raises(UserError, match=r"--set gem\.margin: has no effect.*asked for: mofo\."):
        resolve_request(read_request(assignments=["gem.margin=3"]))
    assert resolve_request(read_request({"gem": {"margin": 3}})).strategies["gem"].margin == 3
    assert resolve_request(read_request(strategy="gem", assignments=["gem.margin=3"]))
    both = {"sweep": {"rows": [{"strategy": "gem+mofo"}, {"strategy": "sequential"}]}}
    assert plan_sweep(read_request(both, assignments=["gem.margin=3"]))
    with pytest.raises(UserError, match="asked for: sequential"):
        plan_sweep(read_request(both, strategy="sequential", assignments=["gem.margin=3"]))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["tune"], "give --grid"),
        (["tune", "--grid", "mofo.update_fraction=0.1,7"], "less than or equal to 1, not 7"),
        (["tune", "--grid", "optimizer.lr=1,2", "--share", "2"], "data.train_share"),
        (["run", "--set", "gem.margin=3"], "no run has the strategy gem at work"),
    ],
)
def test_a_users_mistake_is_one_message(arguments, part, tmp_path):
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_the_command_line_tunes(tmp_path):
    done = command(
        "tune",
        *("--grid", "optimizer.lr=1e-3,1e-4", "--strategy", "sequential", "--by", "learned"),
        *("--set", "tasks.only=[FOMC]", "--set", "tasks.epochs=1", "--set", "data.train_limit=8"),
        *("--set", "data.eval_limit=3"),
        cwd=tmp_path,
        COLUMNS="100",
    )
    assert done.returncode == 0, done.stderr
    assert "highest learned" in done.stdout
    best = yaml.safe_load((tmp_path / "outputs" / "tune" / "best.yaml").read_text())
    assert best["strategy"] == "sequential"
    assert best["optimizer"]["lr"] in (1e-3, 1e-4)
