"""Recipes: what is filled in, what wins over what, and what is refused."""

import pytest
import yaml

from cl_mofo.errors import UserError
from cl_mofo.expansion import expand
from cl_mofo.paths import expand as expand_path
from cl_mofo.recipes import (
    SWEEP,
    builtin_recipes,
    override,
    read_recipe,
    read_request,
    to_mapping,
)
from cl_mofo.resolve import resolve


def test_defaults_are_the_papers():
    recipe = resolve({})
    assert recipe.optimizer.lr == 1e-5
    assert recipe.optimizer.batch_size == 64
    assert recipe.optimizer.schedule == "cosine"
    assert recipe.strategies["mofo"].update_fraction == 0.05
    assert "TinyLlama" in recipe.model.path


def _runs(name):
    recipe = read_recipe(name)
    return list(expand(recipe).values()) if SWEEP in recipe else [recipe]


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_builtin_recipe_is_valid_and_opens_with_a_comment(name):
    assert builtin_recipes()[name].startswith("# ")
    for run in _runs(name):
        resolve(run)


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_saved_recipe_resolves_to_itself(name):
    for run in _runs(name):
        recipe = resolve(run)
        assert resolve(yaml.safe_load(yaml.safe_dump(to_mapping(recipe)))) == recipe


def test_set_assigns_yaml_values():
    raw = override(
        {"data": {"suite": "trace"}}, ["data.test_limit=5", "tasks.only=[FOMC]", "seed=3"]
    )
    assert raw == {
        "data": {"suite": "trace", "test_limit": 5},
        "tasks": {"only": ["FOMC"]},
        "seed": 3,
    }


def test_set_does_not_change_what_it_was_given():
    given = {"data": {"suite": "trace"}}
    override(given, ["data.suite=trace-mini"])
    assert given == {"data": {"suite": "trace"}}


@pytest.mark.parametrize(
    ("below", "text", "expected"),
    [
        ({"FOMC": 1, "Py150": 2}, "tasks.epochs.FOMC=3", {"FOMC": 3, "Py150": 2}),
        ({"FOMC": 1, "Py150": 2}, "tasks.epochs=3", 3),
        ({"FOMC": 1, "Py150": 2}, "tasks.epochs=null", None),
        (5, "tasks.epochs.FOMC=3", {"FOMC": 3}),
        ({"FOMC": 1, "Py150": 2}, "tasks=null", {"FOMC": 1, "Py150": 2}),
    ],
)
def test_set_changes_one_task_and_leaves_the_others(below, text, expected):
    request = read_request({"tasks": {"epochs": below}}, assignments=[text])
    assert resolve(request.complete()).tasks.epochs == expected


def _at_work(raw):
    recipe = resolve(raw)
    names = recipe.strategy.split("+")
    return recipe.model_copy(update={"strategies": {n: recipe.strategies[n] for n in names}})


def test_the_rows_of_table2_are_its_single_recipes():
    names = [n for n in builtin_recipes() if n.startswith("table2-")]
    single = {n: _at_work(r) for n in names if SWEEP not in (r := read_recipe(n))}
    rows = expand(read_recipe("table2"))
    assert {f"table2-{n.replace('+', '-')}": _at_work(row) for n, row in rows.items()} == single
    assert len(single) == 9


def test_numbers_in_scientific_notation():
    # YAML 1.1 reads 1e-5 as text; a user means the number.
    assert resolve(override({}, ["optimizer.lr=5e-4"])).optimizer.lr == 5e-4


def test_a_protocol_sets_defaults_and_explicit_keys_win():
    trace = resolve({"protocol": "trace-v1"})
    assert trace.training.tokenisation == "joint"
    assert trace.optimizer.schedule == "constant"
    assert (trace.evaluation.decoding, trace.evaluation.temperature) == ("sample", 0.1)
    mixed = resolve({"protocol": "trace-v1", "optimizer": {"schedule": "linear", "lr": 0.1}})
    assert mixed.optimizer.schedule == "linear"
    assert mixed.training.loss == "micro_batches"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"optimzer": {}}, "unknown recipe key 'optimzer' (did you mean 'optimizer'?)"),
        ({"optimizer": {"betaz": 1}}, "'optimizer.betaz' (did you mean 'optimizer.betas'?)"),
        ({"lr": 1}, "unknown recipe key 'lr' (did you mean 'optimizer.lr'?)"),
        ({"data": {"batch_size": 1}}, "(did you mean 'optimizer.batch_size'?)"),
        ({"mofo": {"fraction": 1}}, "(did you mean 'mofo.update_fraction'?)"),
        ({"mofo": {"update_fraction": 0}}, "recipe key mofo.update_fraction"),
        ({"mofo": {"update_fraction": "x"}}, "recipe key mofo.update_fraction"),
        ({"mofo": 3}, "recipe key mofo: a mapping"),
        ({"strategy": "mofoo"}, "unknown strategy 'mofoo' (did you mean 'mofo'?)"),
        ({"strategy": "mofo+"}, "joined by '+'"),
        ({"strategy": "mofo+mofo"}, "twice"),
        ({"strategy": "mofo+sequential"}, "each brings its own optimizer"),
        ({"strategy": 3}, "recipe key strategy"),
        ({"tasks": {"only": ["FOMCC"]}}, "unknown task 'FOMCC' (did you mean 'FOMC'?)"),
        ({"tasks": {"only": []}}, "name at least one task"),
        ({"tasks": {"only": ["FOMC", "FOMC"]}}, "a task is named twice"),
        ({"tasks": {"epochs": {"FOMCC": 1}}}, "unknown task 'FOMCC'"),
        ({"tasks": {"epochs": 0}}, "recipe key tasks.epochs: a whole number of at least 1"),
        ({"optimizer": {"lr": -1}}, "recipe key optimizer.lr"),
        ({"optimizer": {"lr": float("nan")}}, "recipe key optimizer.lr"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "recipe key optimizer.betas"),
        ({"optimizer": 3}, "recipe key optimizer"),
        ({"seed": -1}, "recipe key seed"),
        ({"protocol": "trace"}, "recipe key protocol"),
        ({"strategies": {}}, "unknown recipe key 'strategies'"),
        ({"imports": 3}, "Python files were expected"),
        ({"tasks": {"only": "FOMC"}}, "a list of task names was expected, as in [FOMC, Py150]"),
        ({"mofo": {"update_fraction": True}}, "mofo.update_fraction: a number"),
        ({"optimizer": {"lr": True}}, "recipe key optimizer.lr: a number was expected"),
        ({"data": {"test_limit": True}}, "recipe key data.test_limit"),
        ({1: 2}, "unknown recipe key '1'"),
    ],
)
def test_mistakes_are_named(raw, message):
    with pytest.raises(UserError) as caught:
        resolve(raw)
    assert message in str(caught.value)


def test_all_mistakes_come_at_once_whatever_the_strategy():
    raw = {"strategy": "sequential", "mofo": {"update_fraction": 2}, "sed": 1, "tasks": {"x": 1}}
    with pytest.raises(UserError) as caught:
        resolve(raw)
    for part in ("mofo.update_fraction", "'sed' (did you mean 'seed'?)", "'tasks.x'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "a mapping of keys was expected"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("seed: !!int ''", "not valid YAML"),
        ("seed: !!timestamp x", "not valid YAML"),
        ("seed: 1\nseed: 2", "'seed' is given twice"),
    ],
)
def test_recipe_files_that_are_none(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(str(file))


def test_a_recipe_that_is_not_there():
    with pytest.raises(UserError, match="did you mean 'trace-mini'"):
        read_recipe("trace-mni")


@pytest.mark.parametrize("assignment", ["seed", "=3", "a..b=3", "seed=["])
def test_assignments_that_are_none(assignment):
    with pytest.raises(UserError, match="--set"):
        override({"seed": 1}, [assignment])


def test_without_options_the_embedded_suite_and_model_run():
    recipe = resolve(read_request().complete())
    assert (recipe.model.path, recipe.data.suite, recipe.strategy) == ("tiny", "trace-mini", "mofo")
    assert recipe.optimizer.lr == 5e-4
    assert recipe.tasks.epochs == 3


@pytest.mark.parametrize(
    "asked", [{"data": "/data"}, {"assignments": ["data.suite=trace", "data.path=/data"]}]
)
def test_another_suite_brings_its_own_epochs_and_budgets(asked):
    recipe = resolve(read_request(strategy="sequential", **asked).complete())
    assert (recipe.model.path, recipe.data.suite, recipe.data.path) == ("tiny", "trace", "/data")
    assert recipe.tasks.epochs is recipe.tasks.prompt_tokens is None
    assert recipe.strategy == "sequential"
    assert recipe.optimizer.lr == 5e-4  # which is tiny's


@pytest.mark.parametrize("asked", [{"model": "/m"}, {"assignments": ["model.path=/m"]}])
def test_another_model_brings_the_defaults(asked):
    recipe = resolve(read_request(data="/data", **asked).complete())
    assert (recipe.model.path, recipe.optimizer.lr, recipe.optimizer.batch_size) == ("/m", 1e-5, 64)
    assert recipe.strategies["mofo"].update_fraction == 0.05


def test_a_mapping_is_completed_as_the_command_line_is(tmp_path):
    few = {"data": {"train_limit": 8}, "tasks": {"epochs": 1}}
    recipe = resolve(read_request(few).complete())
    assert (recipe.model.path, recipe.data.suite, recipe.data.train_limit) == (
        "tiny",
        "trace-mini",
        8,
    )
    assert (recipe.tasks.epochs, recipe.tasks.prompt_tokens, recipe.optimizer.lr) == (1, 80, 5e-4)
    file = tmp_path / "few.yaml"
    file.write_text(yaml.safe_dump(few))
    assert resolve(read_request(str(file)).complete()) == recipe


def test_a_file_on_another_suite_has_the_default_model(tmp_path):
    (tmp_path / "trace.yaml").write_text("data: {path: /data}\noptimizer:\n")
    recipe = resolve(read_request(str(tmp_path / "trace.yaml")).complete())
    assert "TinyLlama" in recipe.model.path
    assert (recipe.data.suite, recipe.optimizer.lr, recipe.tasks.epochs) == ("trace", 1e-5, None)


def test_options_win_over_a_named_recipe_and_set_over_options():
    raw = read_request(
        "table2-mofo", model="/m", data="/d", assignments=["model.path=/n"]
    ).complete()
    recipe = resolve(raw)
    assert (recipe.model.path, recipe.data.path, recipe.optimizer.lr) == ("/n", "/d", 1e-5)


@pytest.mark.parametrize("name", ["table2-mofo", "table2-sequential", None])
def test_traces_protocol_holds_for_every_recipe_of_trace(name):
    recipe = resolve(read_request(name, data="/d", assignments=["protocol=trace-v1"]).complete())
    assert recipe.optimizer.schedule == "constant"
    assert recipe.tasks.answer_tokens == 512
    assert recipe.evaluation.batch_size == 4
    assert (recipe.evaluation.top_k, recipe.evaluation.skip_special_tokens) == (50, True)
    assert recipe.training.micro_batch_size in (4, 16)  # 16 is tiny's


def test_code_runs_only_if_the_command_line_says_so(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"imports: [{tmp_path / 'mine.py'}]\n")
    with pytest.raises(UserError, match=r"That is code: read it, and allow it with --import"):
        read_request(str(recipe)).complete()
    allowed = resolve(read_request(str(recipe), imports=[tmp_path / "mine.py"]).complete())
    assert allowed.imports == (tmp_path / "mine.py",)
    (tmp_path / "more.py").write_text("y = 2\n")
    recipe.write_text(f"imports: {tmp_path / 'mine.py'}\n")  # one file, not a list of them
    both = [tmp_path / "mine.py", tmp_path / "more.py"]
    assert resolve(read_request(str(recipe), imports=both).complete()).imports == tuple(both)
    recipe.write_text("model: {path: x, trust_remote_code: true}\n")
    with pytest.raises(UserError, match="trust_remote_code=true"):
        read_request(str(recipe)).complete()
    granted = read_request(str(recipe), assignments=["model.trust_remote_code=true"]).complete()
    assert resolve(granted).model.trust_remote_code is True


def test_remote_code_is_off_by_default():
    assert resolve({}).model.trust_remote_code is False


def test_paths_expand_and_name_what_is_not_set(monkeypatch):
    monkeypatch.setenv("TRACE_DIR", "/data/trace")
    assert str(expand_path("$TRACE_DIR/x", "data.path")) == "/data/trace/x"
    monkeypatch.delenv("TRACE_DIR")
    with pytest.raises(UserError, match=r"data\.path: the environment variable TRACE_DIR in"):
        expand_path("${TRACE_DIR}/x", "data.path")


def test_a_bomb_of_aliases_is_refused_at_once():
    lines = ["a: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 20)]
    with pytest.raises(UserError, match="more than 25000 values"):
        override({}, [f"seed={{{', '.join(lines)}}}"])


def test_a_recipe_made_in_python_gets_every_strategys_settings():
    from cl_mofo.config import Recipe
    from cl_mofo.experiment import as_recipe

    assert as_recipe(Recipe()).strategies["mofo"].update_fraction == 0.05
