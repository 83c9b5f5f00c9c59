"""Several runs from one recipe: which they are, and what the command line makes of them."""

import pytest
import yaml

import cl_mofo
from cl_mofo import listing
from cl_mofo.errors import UserError
from cl_mofo.expansion import expand
from cl_mofo.recipes import read_request
from cl_mofo.resolve import resolve
from cl_mofo.sweep import plan_sweep, run_sweep

EXTRA = (
    "from cl_mofo.strategy import Strategy\n"
    "class Extra(Strategy):\n"
    "    name = 'extra'\n"
    "    phases = frozenset({'penalty'})\n"
)


def test_rows_are_laid_over_the_recipe_and_varied_values_over_the_rows():
    runs = expand(
        {
            "optimizer": {"lr": 1.0, "batch_size": 4},
            "sweep": {
                "rows": [
                    {"strategy": "sequential", "optimizer": {"lr": 5e-4}},
                    {"seed": 9},
                ],
                "vary": {"seed": [1, 2], "tasks.epochs": [1, 3]},
            },
        }
    )
    first, second = {"lr": 5e-4, "batch_size": 4}, {"lr": 1.0, "batch_size": 4}
    assert list(runs.items()) == [
        (
            f"{name}-seed{seed}-tasks.epochs={epochs}",
            {"optimizer": optimizer, "seed": seed, "tasks": {"epochs": epochs}} | strategy,
        )
        for name, optimizer, strategy in (
            ("sequential", first, {"strategy": "sequential"}),
            ("mofo", second, {}),
        )
        for seed in (1, 2)
        for epochs in (1, 3)
    ]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ({"vary": {"optimizer.lr": [3e-4, 1e-3]}}, ["optimizer.lr=0.0003", "optimizer.lr=0.001"]),
        ({"vary": {"tasks.only": [["FOMC", "Py150"]]}}, ["tasks.only=_FOMC_Py150"]),
        ({"vary": {"optimizer.max_grad_norm": [None]}}, ["optimizer.max_grad_norm=null"]),
        ({"vary": {"save_model": [True]}}, ["save_model=true"]),
        (
            {"vary": {"model.path": ["../a b", "../a/b"]}},
            ["model.path=.._a_b", "model.path=.._a_b-2"],
        ),
    ],
)
def test_a_run_is_named_by_what_varies(key, names):
    assert list(expand({"sweep": key})) == [f"mofo-{name}" for name in names]


def test_rows_of_one_name_are_numbered_alike_for_every_value():
    rows = [{"optimizer": {"lr": lr}} for lr in (1, 2)] + [{"strategy": "gem+mofo"}]
    assert list(expand({"sweep": {"rows": rows, "vary": {"seed": [1, 2]}}})) == [
        "mofo-seed1",
        "mofo-seed2",
        "mofo-seed1-2",
        "mofo-seed2-2",
        "gem+mofo-seed1",
        "gem+mofo-seed2",
    ]


@pytest.mark.parametrize("strategy", ["..", "/etc/x", "", "a\0b\n", "x" * 500, 3])
def test_names_are_folders_within_the_folder(strategy):
    (name,) = expand({"sweep": {"rows": [{"strategy": strategy}]}})
    assert name
    assert len(name) < 150
    assert "/" not in name
    assert name[0] != "."
    assert name.isprintable()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (3, "sweep: a mapping with rows, vary or both was expected, not 3"),
        ({}, "sweep: give rows, vary or both"),
        ({"row": []}, "sweep.row: no such key (did you mean 'rows'?); known: rows, vary"),
        ({"rows": []}, "sweep.rows: a list of at least one row"),
        ({"rows": {"strategy": "mofo"}}, "sweep.rows: a list"),
        ({"rows": ["mofo"]}, "row 1: a mapping of keys was expected, not 'mofo'"),
        ({"vary": []}, "sweep.vary: recipe keys with lists"),
        (
            {"vary": {"seed": 1}},
            "sweep.vary.seed: a list of at least one value was expected, not 1",
        ),
        ({"vary": {"seed": []}}, "sweep.vary.seed: a list"),
        ({"vary": {"optimizer": {"lr": [1]}}}, "sweep.vary.optimizer: a list of at least one"),
        ({"vary": {"optimizer..lr": [1]}}, "'optimizer..lr' is no recipe key"),
        ({"vary": {"seed": list(range(40)), "a.b": list(range(40))}}, "1600 runs; 1000 at most"),
        ({"rows": [{"sweep": {}}]}, "row 1: 'sweep' cannot be set here"),
        ({"rows": [{"imports": ["a.py"]}]}, "row 1: 'imports' cannot be set here"),
        ({"vary": {"imports": [["a.py"]]}}, "sweep.vary.imports: 'imports' cannot be set here"),
        ({"vary": {"model.trust_remote_code": [True]}}, "'model.trust_remote_code' cannot be set"),
        ({"vary": {"model": [{"trust_remote_code": True}]}}, "'model.trust_remote_code' cannot"),
        ({"rows": [{"model": {"trust_remote_code": True}}]}, "'model.trust_remote_code' cannot"),
    ],
)
def test_mistakes_in_the_key_are_named(key, message):
    with pytest.raises(UserError) as caught:
        expand({"sweep": key})
    assert message in str(caught.value)


def test_a_bomb_of_aliases_is_refused_at_once():
    bomb = ["x"] * 9
    for _ in range(20):
        bomb = [bomb] * 9
    nested = {"a": 1}
    for _ in range(20):
        nested = {f"k{i}": nested for i in range(9)}
    assert len(expand({"sweep": {"vary": {"seed": [bomb]}}})) == 1
    other = {"a": 2}
    for _ in range(20):
        other = {f"k{i}": other for i in range(9)}
    assert len(expand({"tasks": other, "sweep": {"rows": [{"tasks": nested}]}})) == 1
    with pytest.raises(UserError, match="a list of at least one value"):
        expand({"sweep": {"vary": nested}})


@pytest.mark.parametrize(
    ("below", "varied", "expected"),
    [
        ({"FOMC": 1, "Py150": 2}, 3, {"FOMC": 3, "Py150": 2}),
        (5, 3, {"FOMC": 3}),  # a mapping takes the place of one number for all tasks
    ],
)
def test_a_task_is_varied_beside_its_siblings(below, varied, expected):
    raw = {"tasks": {"epochs": below}, "sweep": {"vary": {"tasks.epochs.FOMC": [1, varied]}}}
    assert [run["tasks"]["epochs"] for run in expand(raw).values()] == [
        expected | {"FOMC": 1},
        expected,
    ]
    assert raw["tasks"]["epochs"] == below
    raw["sweep"] = {"vary": {"tasks.epochs": [7]}}  # and the other way round
    assert expand(raw)["mofo-tasks.epochs=7"]["tasks"] == {"epochs": 7}


def test_all_mistakes_in_all_runs_come_at_once_and_leave_no_folder(tmp_path):
    rows = [{"strategy": "moof"}, {"strategy": "sequential"}, {"data": {"suite": "trase"}}]
    recipe = {"optimizer": {"lr": 1.0}, "sweep": {"rows": rows, "vary": {"seed": [1, -2]}}}
    with pytest.raises(UserError) as caught:
        run_sweep(recipe, out=tmp_path / "out")
    for part in (
        "run moof-seed1: unknown strategy 'moof' (did you mean 'mofo'?)",
        "runs sequential-seed-2, mofo-seed-2: recipe key seed",
        "run mofo-seed1: ",
        "did you mean 'trace'",
    ):
        assert part in str(caught.value)
    assert "sequential-seed1" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"every run of the 2: unknown recipe key 'lr'"):
        plan_sweep(read_request({"sweep": {"vary": {"seed": [1, 2]}}, "lr": 1}))


@pytest.mark.parametrize(
    ("key", "second", "first"),
    [
        ({"rows": [{}, {"strategy": "mofo"}]}, "mofo-2", "mofo"),
        ({"rows": [{"seed": 1}, {}], "vary": {"seed": [3]}}, "mofo-seed3-2", "mofo-seed3"),
        ({"vary": {"seed": [1, 2, 1]}}, "mofo-seed1-2", "mofo-seed1"),
        (
            {"vary": {"optimizer": [{"lr": 1}, {"lr": 2}], "optimizer.lr": [3]}},
            "mofo-optimizer=_lr_2_-optimizer.lr=3",
            "mofo-optimizer=_lr_1_-optimizer.lr=3",
        ),
    ],
)
def test_no_run_is_described_twice(key, second, first):
    with pytest.raises(UserError, match=f"^run {second}: the run is the same as {first}$"):
        plan_sweep(read_request({"sweep": key}))


def test_one_run_is_no_sweep_and_a_sweep_no_run(tmp_path):
    with pytest.raises(UserError, match=r"cl_mofo\.sweep\.run_sweep"):
        cl_mofo.run({"sweep": {"vary": {"seed": [1]}}}, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"unknown recipe key 'sweeps' \(did you mean 'sweep'\?\)"):
        resolve({"sweeps": {}})
    with pytest.raises(UserError) as caught:
        resolve({"color": 1})
    assert "sweep" not in str(caught.value)
    assert cl_mofo.run_sweep is run_sweep


@pytest.fixture
def file(tmp_path):
    (tmp_path / "extra.py").write_text(EXTRA)
    rows = [{"strategy": name} for name in ("sequential", "mofo", "extra+mofo")]
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump({"sweep": {"rows": rows, "vary": {"seed": [1, 2]}}}))
    return path


def planned(file, **options):
    return plan_sweep(read_request(str(file), imports=[file.parent / "extra.py"], **options))


def test_options_hold_for_every_run(file):
    recipes = planned(file, assignments=["optimizer.lr=0.5", "save_model=false"])
    assert len(recipes) == 6
    assert {(r.optimizer.lr, r.save_model) for r in recipes.values()} == {(0.5, False)}


def test_a_key_that_is_set_varies_no_more(file):
    assert list(planned(file, assignments=["seed=7"])) == [
        "sequential-seed7",
        "mofo-seed7",
        "extra+mofo-seed7",
    ]
    narrowed = planned(file, assignments=["sweep.vary.seed=[2]", "sweep.vary.optimizer.lr=[1, 2]"])
    assert list(narrowed)[:2] == [
        "sequential-seed2-optimizer.lr=1",
        "sequential-seed2-optimizer.lr=2",
    ]
    assert len(narrowed) == 6


@pytest.mark.parametrize(
    "asked", [{"strategy": "mofo+extra"}, {"assignments": ["strategy=mofo+extra"]}]
)
def test_a_strategy_selects_its_rows_under_their_names(file, asked):
    assert list(planned(file, **asked)) == ["extra+mofo-seed1", "extra+mofo-seed2"]


def test_a_strategy_that_no_row_has(file):
    with pytest.raises(UserError, match=r"there are: sequential, mofo, extra\+mofo"):
        planned(file, strategy="extra")


def test_a_strategy_holds_for_all_where_no_row_names_one():
    request = read_request(
        {"sweep": {"vary": {"seed": [1]}}, "strategy": "mofo"}, strategy="sequential"
    )
    ((name, recipe),) = plan_sweep(request).items()
    assert (name, recipe.strategy) == ("sequential-seed1", "sequential")


def test_each_run_is_completed_as_if_it_were_alone(tmp_path):
    rows = [{}, {"model": {"path": str(tmp_path)}}]
    tiny, other = plan_sweep(read_request({"sweep": {"rows": rows}})).values()
    assert (tiny.model.path, tiny.optimizer.lr, tiny.tasks.epochs) == ("tiny", 5e-4, 3)
    assert (other.model.path, other.optimizer.lr, other.tasks.epochs) == (str(tmp_path), 1e-5, 3)


def test_a_file_runs_no_code_that_is_not_allowed(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')\n")
    file = tmp_path / "recipe.yaml"
    mine = [str(tmp_path / "mine.py")]
    file.write_text(yaml.safe_dump({"imports": mine, "sweep": {"vary": {"seed": [1]}}}))
    with pytest.raises(UserError, match="allow it with --import"):
        run_sweep(file, out=tmp_path / "out")
    file.write_text(yaml.safe_dump({"sweep": {"rows": [{"imports": mine}]}}))
    with pytest.raises(UserError, match="'imports' cannot be set here"):
        run_sweep(file, out=tmp_path / "out")


def test_listing_counts_strategies_and_seeds(monkeypatch):
    def text(key):
        recipe = yaml.safe_dump({"strategy": "mofo", "sweep": key})
        monkeypatch.setattr("cl_mofo.recipes.builtin_recipes", lambda: {"some": recipe})
        monkeypatch.setattr(listing, "builtin_recipes", lambda: {"some": recipe})
        return list(listing.runs().columns[3].cells)

    rows = [{"strategy": "sequential"}, {"strategy": "mofo"}]
    assert text({"rows": rows, "vary": {"seed": [1, 2, 3]}}) == ["2 strategies x 3 seeds"]
    assert text({"vary": {"seed": [1, 2]}}) == ["mofo x 2 seeds"]
    assert text({"vary": {"optimizer.lr": [1, 2], "seed": [1, 2]}}) == ["4 runs: mofo x 2 seeds"]
