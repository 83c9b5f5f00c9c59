"""A sample of what `python -m tests.fuzz` runs by the ten thousands, and that it would tell."""

import contextlib
import json
import signal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_mofo.config import Recipe
from cl_mofo.errors import UserError
from tests import fuzz
from tests.fuzz_targets import TARGETS, Target, case, take_data, take_recipe, take_run

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 200)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["mofo", "ewc+mofo", "FOMC", "trace", "default", "cpu", "test", "1e-5"])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["prompt", "answer"]), inner)
    ),
    max_leaves=8,
)
KEYS = [*Recipe.model_fields, "mofo", "ewc", "replay", "lora", "sweep"]
INNER = sorted(
    {
        key
        for field in Recipe.model_fields.values()
        for key in getattr(field.default, "__dict__", {})
    }
)
RECIPES = st.dictionaries(
    st.sampled_from(KEYS),
    LEAVES | st.dictionaries(st.sampled_from([*INNER, "rows", "vary"]), TREES, max_size=3),
    max_size=4,
)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _alarm():
    before = signal.signal(signal.SIGALRM, fuzz._late)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files_are_refused_or_right(target):
    @QUICK
    @given(st.integers(0, 10**9))
    def check(number):
        fuzz.outcome(target, case(target, 0, number))

    check()


@pytest.mark.parametrize("target", TARGETS)
def test_the_valid_files_that_cases_are_made_of_are_taken(target):
    assert {fuzz.outcome(target, seed) for seed in TARGETS[target].seeds} == {"taken"}


def _taken(take, data, folder):
    with contextlib.suppress(UserError):
        take(data, folder)


@QUICK
@given(RECIPES)
def test_any_mapping_of_known_keys_is_refused_or_a_recipe(tmp_path, raw):
    _taken(
        take_recipe, yaml.safe_dump(raw, allow_unicode=True).encode("utf-8", "replace"), tmp_path
    )


@QUICK
@given(st.lists(TREES, max_size=4))
def test_any_list_is_refused_or_records(tmp_path, rows):
    _taken(take_data, json.dumps(rows).encode(), tmp_path)


@QUICK
@given(st.sampled_from(sorted(json.loads(TARGETS["runs"].seeds[0][1:]))), TREES)
def test_any_value_in_results_is_refused_or_shown(tmp_path, key, value):
    good = json.loads(TARGETS["runs"].seeds[0][1:])
    _taken(take_run, b"\x00" + json.dumps(good | {key: value}).encode(), tmp_path)


@pytest.mark.parametrize("fault", ["hang", "error", "mute"])
def test_a_fault_is_told_and_its_input_kept(monkeypatch, tmp_path, capsys, fault):
    def take(data, folder):
        while fault == "hang":
            pass
        raise {"error": KeyError("x"), "mute": UserError(" ")}[fault]

    monkeypatch.setitem(TARGETS, "json", Target([b"[1, 2, 3]"], take))
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    arguments = ["json", "--count", "1", "--seed", "7", "--keep", str(tmp_path)]
    assert fuzz.main(arguments) == 1
    assert "fault: target json, seed 7, case 0" in capsys.readouterr().out
    assert (tmp_path / "json-7-0").read_bytes() == case("json", 7, 0)
