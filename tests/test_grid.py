"""What a tuning runs, and the recipe that comes out: nothing but the grid is another one."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_mofo.errors import UserError
from cl_mofo.grid import chosen_recipe, plan_tuning, read_grid, trial_only
from cl_mofo.identity import flat
from cl_mofo.recipes import read_request
from cl_mofo.resolve import resolve
from cl_mofo.sweep import plan_sweep

FRACTION, RATE = "mofo.update_fraction", "optimizer.lr"
ROWS = [
    {"strategy": "sequential", "optimizer": {"lr": 5e-4}},
    {"strategy": "mofo", "optimizer": {"lr": 1e-3}, "mofo": {"update_fraction": 0.3}},
    {"strategy": "gem+mofo", "gem": {"margin": 0.5}},
]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer.lr=5e-5,2e-4", [5e-5, 2e-4]),
        ("optimizer.lr=[5e-5, 2e-4]", [5e-5, 2e-4]),
        ("optimizer.schedule=cosine,constant", ["cosine", "constant"]),
        ("optimizer.max_grad_norm=null, 1", [None, 1]),
        ("optimizer.betas=[[0.9, 0.95], [0.9, 0.99]]", [[0.9, 0.95], [0.9, 0.99]]),
        ("optimizer.betas=[0.9, 0.95],[0.9, 0.99]", [[0.9, 0.95], [0.9, 0.99]]),
        ("tasks.epochs=3", [3]),
    ],
)
def test_values_are_yaml(text, values):
    assert read_grid([text]) == {text.partition("=")[0]: values}


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "give --grid"),
        (["optimizer.lr"], {}, "--grid optimizer.lr: write key=values"),
        (["optimizer.lr=1", "optimizer.lr=2"], {}, "the key is given twice"),
        (["optimizer.lr=[1"], {}, "--grid optimizer.lr=[1: not valid YAML"),
        (["optimizer.lr="], {}, "--grid optimizer.lr: at least one value"),
        (["optimizer.lr=1e-3,0.001"], {}, "--grid optimizer.lr: the value 0.001 is given twice"),
        (["lr=1,2"], {}, "--grid lr: write a key of a section"),
        (["optimizer.=1,2"], {}, "--grid optimizer.: write a key of a section"),
        (["seed=1,2"], {}, "--grid seed: write a key of a section"),
        (["data.train_limit=1,2"], {}, "--grid data.train_limit: cannot be chosen by its scores"),
        (["evaluation.split=test,eval"], {}, "cannot be chosen by its scores"),
        (["tasks.only=[[FOMC],[Py150]]"], {}, "--grid tasks.only: cannot be chosen"),
        (["tasks.epochs=1,2", "tasks.epochs.FOMC=3"], {}, "tasks.epochs: holds tasks.epochs.FOMC"),
        (["gem.margin=1,2"], {}, "no run has the strategy gem at work; asked for: mofo"),
        (["moof.update_fraction=0.1"], {}, "unknown recipe key 'moof' (did you mean 'mofo'?)"),
        (["optimizer.lr=0.1,-1"], {}, "run mofo-optimizer.lr=-1-seed42: recipe key optimizer.lr"),
        (["optimizer.lr=1,2"], {"assignments": ["optimizer.lr=3"]}, "--set sets it too"),
        (
            ["optimizer.lr=1,2"],
            {"assignments": ["evaluation.split=test"]},
            "chosen on eval, never on test",
        ),
        (["optimizer.lr=1,2"], {"strategy": "moof"}, "unknown strategy 'moof'"),
        (["optimizer.lr=1,2"], {"assignments": ["gem.margin=3"]}, "--set gem.margin: has no eff"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(texts, options, message):
    with pytest.raises(UserError) as caught:
        plan_sweep(plan_tuning(read_request(**options), read_grid(texts)).request)
    assert message in str(caught.value)


def test_each_strategy_goes_through_what_concerns_it_with_one_seed():
    request = read_request({"sweep": {"rows": ROWS, "vary": {"seed": [5, 6]}}})
    plan = plan_tuning(request, {FRACTION: [0.1, 0.2], RATE: [1e-3, 2e-3]})
    assert [point.name for point in plan.points] == [
        "sequential-optimizer.lr=0.001-seed5",
        "sequential-optimizer.lr=0.002-seed5",
        *(
            f"{strategy}-mofo.update_fraction={fraction}-optimizer.lr={rate}-seed5"
            for strategy in ("mofo", "gem+mofo")
            for fraction in (0.1, 0.2)
            for rate in (0.001, 0.002)
        ),
    ]
    only = plan_tuning(request, {FRACTION: [0.1, 0.2]})
    names = [point.name for point in only.points]
    assert names[0] == "sequential-seed5"
    assert len(names) == 5


@pytest.mark.parametrize(
    ("assignment", "seeds"), [("seed=9", [9]), ("sweep.vary.seed=[2, 3]", [2, 3])]
)
def test_the_seeds_can_be_asked_for_and_the_chosen_recipe_keeps_its_own(assignment, seeds):
    given = {"sweep": {"rows": ROWS, "vary": {"seed": [5, 6]}}}
    plan = plan_tuning(read_request(given, assignments=[assignment]), {RATE: [1, 2]})
    assert {recipe.seed for recipe in plan_sweep(plan.request).values()} == {*seeds}
    assert chosen_recipe(plan, [{RATE: 1}] * 3)["sweep"]["vary"] == {"seed": [5, 6]}


@pytest.mark.parametrize(
    "given",
    [
        {"sweep": {"vary": {"optimizer.lr": [1e-4, 1e-3], "seed": [1, 2]}}},
        {"sweep": {"rows": [{"optimizer": {"lr": 1}}, {"optimizer": {"lr": 2}, "seed": 3}, {}]}},
        {"evaluation": {"split": "eval"}, "sweep": {"vary": {"evaluation.split": ["test"]}}},
    ],
)
def test_rows_that_differ_in_the_grid_or_the_seed_are_one(given):
    plan = plan_tuning(read_request(given), {RATE: [1e-3, 1e-2]})
    assert len(plan.contestants) == 1
    assert len(plan.points) == 2


def test_what_is_set_for_the_tuning_alone_is_not_in_the_chosen_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"data": {"test_limit": 7}, "tasks": {"epochs": 2}}))
    proxy = ["tasks.only=[FOMC]", "tasks.epochs=1", "data.train_limit=8", "data.eval_limit=4"]
    lasting = ["optimizer.batch_size=4", "mofo.filter_all=true", "training.packing=false"]
    request = read_request(str(file), assignments=[*proxy, *lasting, "seed=3"], strategy="mofo")
    plan = plan_tuning(request, {RATE: [1e-3, 1e-2]}, share=0.5)
    for tried in plan_sweep(plan.request).values():
        assert (tried.data.train_share, tried.data.train_limit, tried.seed) == (0.5, 8, 3)
        assert (tried.evaluation.split, tried.optimizer.batch_size) == ("eval", 4)
    assert chosen_recipe(plan, [{RATE: 1e-2}]) == {
        "model": {"path": "tiny"},
        "data": {"test_limit": 7},
        "tasks": {"epochs": 2},
        "strategy": "mofo",
        "optimizer": {"batch_size": 4, "lr": 1e-2},
        "mofo": {"filter_all": True},
        "training": {"packing": False},
    }
    assert {*trial_only(plan)} == {
        *(key.partition("=")[0] for key in proxy),
        "data.train_share",
        "seed",
    }
    assert trial_only(plan_tuning(read_request(str(file)), {RATE: [1e-3, 1e-2]})) == {}


PARTS = st.fixed_dictionaries(
    {"strategy": st.sampled_from(["sequential", "mofo", "gem+mofo"])},
    optional={
        "optimizer": st.fixed_dictionaries({"lr": st.sampled_from([0.1, 0.2])}),
        "tasks": st.fixed_dictionaries({"epochs": st.sampled_from([1, 2])}),
        "mofo": st.fixed_dictionaries({"update_fraction": st.sampled_from([0.3, 0.4])}),
        "evaluation": st.sampled_from([{"split": "eval"}, {"losses": False}]),
        "seed": st.sampled_from([1, 2]),
    },
)
VARY = st.dictionaries(
    st.sampled_from(["seed", "optimizer.lr", "tasks.epochs"]),
    st.lists(st.sampled_from([3, 4]), min_size=1, unique=True),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(PARTS, max_size=2), VARY, st.data())
def test_the_chosen_recipe_describes_the_given_runs_with_the_chosen_values(rows, vary, data):
    given_sweep = {"rows": [{"strategy": "mofo"}, *rows]} | ({"vary": vary} if vary else {})
    plan = plan_tuning(
        read_request({"sweep": given_sweep}), {FRACTION: [0.5, 0.6], RATE: [0.7, 0.8]}
    )
    chosen = []
    for row in range(len(plan.contestants)):
        points = [point for point in plan.points if point.row == row]
        picked = data.draw(st.sampled_from(points)).varied
        chosen.append({key: value for key, value in picked.items() if key != "seed"})

    def told(recipe):
        kept = dict(flat(recipe))
        return {key: str(value) for key, value in kept.items() if key not in (FRACTION, RATE)}

    best = yaml.safe_load(yaml.safe_dump(chosen_recipe(plan, chosen)))
    request = read_request(best)
    found = plan_sweep(request).values() if request.several else [resolve(request.complete())]
    expected = [resolve(read_request(p.recipe).complete()) for p in plan.given.points]
    told_expected = [told(recipe) | {"evaluation.split": "test"} for recipe in expected]
    assert {*map(str, map(told, found))} == {*map(str, told_expected)}
    for recipe in found:
        own = dict(flat(recipe))
        assert own[RATE] in (0.7, 0.8)
        assert own.get(FRACTION, 0.5) in (0.5, 0.6)
