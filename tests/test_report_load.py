"""Reading results.json: what is taken, and that anything else is refused by name."""

import json
from pathlib import Path

import pytest

from cl_mofo.errors import UserError
from cl_mofo.report import load_results, load_runs, parse_results
from tests.report_runs import SEEDS, make, record, trace_run, write

GOOD = record(SEEDS[1])


def test_a_run_is_read_from_its_folder_and_from_its_file(tmp_path):
    folder = write(tmp_path / "run", GOOD)
    for path in (folder, str(folder), folder / "results.json"):
        run = load_results(path)
        assert (run.name, run.strategy, run.seed) == ("run", "mofo", 1)
        assert run.scores == ((80.0, None), (60.0, 90.0))
        assert (run.op, run.bwt, run.learned) == ((80, 75), (None, -20), 85)
        assert run.finished


def test_a_stopped_run_has_figures_for_the_tasks_it_learned(tmp_path):
    run = trace_run(tmp_path / "run", learned=3)
    assert not run.finished
    assert run.learned_tasks == 3
    assert run.op == (88.5, 87.0, 85.5)  # the last: (82.5 + 85.5 + 88.5) / 3
    assert run.bwt == (None, -3.0, -4.5)  # the last: (-6 - 3) / 2
    assert run.learned == 88.5
    assert run.final[:4] == (82.5, 85.5, 88.5, None)


def test_a_run_that_was_scored_at_the_end_only_has_only_the_last_op():
    only_last = {"scores": [[None, None], [60, 90]], "op": [None, 75], "bwt": [None, None]}
    run = parse_results(GOOD | only_last, "r.json")
    assert (run.op, run.bwt, run.learned) == ((None, 75), (None, None), None)


def test_a_weight_that_began_near_0_may_have_gone_far():
    assert parse_results(GOOD | {"distance": [0.1, 2500.0]}, "r.json").distance == 2500


def test_what_may_be_missing_is_missing():
    bare = {key: GOOD[key] for key in ("schema", "strategy", "seed", "tasks", "scores")}
    run = parse_results(bare | {"op": [80, 75], "bwt": [None, -20], "news": []}, "r.json")
    assert (run.suite, run.model, run.headline, run.initial) == ("", "", {}, None)
    assert run.finished


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "schema 2"),
        ({"schema": True}, "schema True"),
        ({"distance": 0.1}, "'distance'"),
        ({"distance": [0.1, 0.2, 0.3]}, "at most 2"),
        ({"distance": [0.1, "x"]}, "distance[1]"),
        ({"distance": [0.1, 1e10]}, "distance[1]"),
        ({"prose_losses": [-0.1]}, "prose_losses[0]"),
        ({"prose_losses": [float("nan")]}, "prose_losses[0]"),
        ({"prose_losses": [1e9]}, "prose_losses[0]"),
        ({"strategy": 7}, "'strategy' is 7"),
        ({"strategy": " "}, "'strategy'"),
        ({"strategy": "mofo\x1b[2J"}, "cannot be printed"),
        ({"strategy": "mo\nfo"}, "cannot be printed"),
        ({"strategy": "\ud800"}, "cannot be printed"),
        ({"model": ["tiny"]}, "'model'"),
        ({"seed": "1"}, "'seed' is '1'"),
        ({"seed": True}, "'seed' is True"),
        ({"tasks": "task0"}, "'tasks' is a text"),
        ({"tasks": []}, "'tasks'"),
        ({"tasks": ["a", 3]}, "tasks[1]"),
        ({"tasks": ["a", "a"]}, "names a task twice"),
        ({"scores": None}, "'scores' is null"),
        ({"scores": [[80, None]]}, "'scores' has 1 entries, not 2"),
        ({"scores": [[80], [60, 90]]}, "'scores[0]' has 1 entries, not 2"),
        ({"scores": [80, 90]}, "'scores[0]'"),
        ({"scores": [[80, None], ["60", 90]]}, "scores[1][0] (task0) is '60'"),
        ({"scores": [[80, None], [True, 90]]}, "scores[1][0] (task0) is True"),
        ({"scores": [[80, None], [float("nan"), 90]]}, "scores[1][0] (task0) is nan"),
        ({"scores": [[80, None], [float("inf"), 90]]}, "scores[1][0] (task0) is inf"),
        ({"scores": [[80, None], [60, 100.5]]}, "scores[1][1] (task1) is 100.5"),
        ({"scores": [[80, None], [60, 10**400]]}, "scores[1][1] (task1)"),
        ({"scores": [[80, None], [-1, 90]]}, "scores[1][0] (task0) is -1"),
        ({"initial": [1]}, "'initial' has 1 entries, not 2"),
        ({"headline": ["accuracy"]}, "'headline' is a list"),
        ({"headline": {"task0": 1}}, "headline['task0']"),
        ({"op": [80]}, "'op' has 1 entries; the scores hold 2"),
        ({"op": None}, "'op' is null"),
        ({"op": [80, "75"]}, "op[1] is '75'"),
        ({"op": [80, 74]}, "op[1] is 74, but the scores give 75.00 (OP_t = mean"),
        ({"bwt": [0, -20]}, "bwt[0] is 0, but the scores do not give it"),
        # divisor t instead of t-1: a usual mistake in other code
        ({"bwt": [None, -10]}, "bwt[1] is -10, but the scores give -20.00 (BWT_t = mean"),
        ({"finished": "yes"}, "'finished' is 'yes'"),
        ({"scores": [[80, None], [60, None]]}, "says it is finished"),
    ],
)
def test_a_wrong_value_is_refused_by_file_and_key(changes, said):
    with pytest.raises(UserError) as refusal:
        parse_results(GOOD | changes, Path("some/results.json"))
    assert str(refusal.value).startswith("some/results.json: ")
    assert said in str(refusal.value)


@pytest.mark.parametrize("key", ["schema", "strategy", "seed", "tasks", "scores", "op", "bwt"])
def test_a_missing_key_is_named(key):
    with pytest.raises(UserError, match=f"has no '{key}'"):
        parse_results({k: v for k, v in GOOD.items() if k != key}, "results.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1"),
        (b'{"schema": 1,\n "seed": }', "line 2"),
        (b"[1]", "holds a list"),
        (b"null", "holds null"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (json.dumps(GOOD).replace("90", "9" * 5000).encode(), "not JSON"),
    ],
)
def test_a_file_that_is_no_json_of_a_run_is_refused(tmp_path, content, said):
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        load_results(file)
    assert str(file) in str(refusal.value)
    assert said in str(refusal.value)


def test_rounded_figures_are_taken(tmp_path):
    scores = [[33.36, None], [33.34, 66.73]]  # OP_2 = 50.035, BWT_2 = -0.02
    run = make(tmp_path / "run", scores, op=[33.4, 50.0], bwt=[None, 0.0])
    assert run.op[-1] == pytest.approx(50.035)


def test_missing_files_and_folders_without_runs_are_refused(tmp_path):
    for load in (load_results, lambda path: load_runs([path])):
        with pytest.raises(UserError, match=r"absent.*no such file"):
            load(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no run"):
        load_runs([tmp_path])
    with pytest.raises(UserError, match="no run is named"):
        load_runs([])
    (tmp_path / "results.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_results(tmp_path)


def test_a_folder_of_runs_is_expanded_two_levels_and_each_run_taken_once(tmp_path):
    for name in ("b", "a", "sweep/c", "too/deep/down"):
        write(tmp_path / name, GOOD)
    runs = load_runs([tmp_path / "b", tmp_path, tmp_path / "a" / "results.json"])
    assert [run.name for run in runs] == ["b", "a", "c"]


def test_a_bad_run_among_good_ones_is_named(tmp_path):
    write(tmp_path / "a", GOOD)
    write(tmp_path / "b", GOOD | {"seed": None})
    with pytest.raises(UserError, match=r"b/results\.json: 'seed'"):
        load_runs([tmp_path])


@pytest.mark.parametrize("recipe", ["a: [", "- a", "\x00", "a: 2020-13-45"])
def test_a_recipe_that_is_none_is_refused(tmp_path, recipe):
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        make(tmp_path / "run", SEEDS[1], recipe=recipe)
