"""Several runs from one recipe: which they are, and how they go on where they were stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO

import pytest
import yaml
from rich.console import Console as RichConsole

import cl_mofo
from cl_mofo import listing, sweep
from cl_mofo.claim import claim
from cl_mofo.console import Console
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.observer import Observer
from cl_mofo.recipes import override, read_request
from cl_mofo.resolve import resolve
from cl_mofo.sweep import expand, plan_sweep, run_sweep

SMALL = {
    "data": {"suite": "trace-mini", "train_limit": 8, "test_limit": 4},
    "tasks": {"only": ["FOMC", "NumGLUE-cm"], "epochs": 1},
    "evaluation": {"losses": False, "initial": False},
    "save_model": False,
}
TWO = SMALL | {"sweep": {"rows": [{"strategy": "sequential"}, {"strategy": "mofo"}]}}
EXTRA = (
    "from cl_mofo.strategy import Strategy\n"
    "class Extra(Strategy):\n"
    "    name = 'extra'\n"
    "    phases = frozenset({'penalty'})\n"
)
NOISE = (  # draws from every global source of random numbers
    "import random, numpy, torch\n"
    "from cl_mofo.strategy import Strategy\n"
    "class Noise(Strategy):\n"
    "    name = 'noise'\n"
    "    phases = frozenset({'update'})\n"
    "    def after_step(self, loop):\n"
    "        scale = 1e-3 * (random.random() + numpy.random.rand())\n"
    "        for parameter in loop.model.parameters():\n"
    "            parameter.data += scale * torch.randn(parameter.shape)\n"
)


class Heard(Observer):
    """Note what a sweep tells, as (number, skipped or not)."""

    def __init__(self):
        self.told = []

    def next_run(self, number, total, recipe, folder, skipped):
        self.told.append((number, skipped))


def command(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "cl_mofo", "run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"},
    )


# Which runs there are


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
    assert runs == [
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
        ({"vary": {"optimizer": {"lr": [1e-3]}}}, ["optimizer.lr=0.001"]),  # as --set writes it
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
    assert [name for name, _ in expand({"sweep": key})] == [f"mofo-{name}" for name in names]


def test_rows_of_one_name_are_numbered_alike_for_every_value():
    rows = [{"optimizer": {"lr": lr}} for lr in (1, 2)] + [{"strategy": "gem+mofo"}]
    assert [name for name, _ in expand({"sweep": {"rows": rows, "vary": {"seed": [1, 2]}}})] == [
        "mofo-seed1",
        "mofo-seed2",
        "mofo-seed1-2",
        "mofo-seed2-2",
        "gem+mofo-seed1",
        "gem+mofo-seed2",
    ]


@pytest.mark.parametrize("strategy", ["..", "/etc/x", "", "a\0b\n", "x" * 500, 3])
def test_names_are_folders_within_the_folder(strategy):
    ((name, _),) = expand({"sweep": {"rows": [{"strategy": strategy}]}})
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
        ({"row": []}, "'sweep.row' (did you mean 'rows'?); known: rows, vary"),
        ({"rows": []}, "sweep.rows: a list of at least one row"),
        ({"rows": {"strategy": "mofo"}}, "sweep.rows: a list"),
        ({"rows": ["mofo"]}, "row 1: a mapping of keys was expected, not 'mofo'"),
        ({"rows": [{"seed": 1}, {}, {"seed": 1}]}, "rows 1 and 3 are the same"),
        (
            {"rows": [{"seed": 1}, {"seed": 2}], "vary": {"seed": [3]}},
            "rows 1 and 2 are the same, but for seed, which vary",
        ),
        ({"vary": []}, "sweep.vary: recipe keys with lists"),
        (
            {"vary": {"seed": 1}},
            "sweep.vary.seed: a list of at least one value was expected, not 1",
        ),
        ({"vary": {"seed": []}}, "sweep.vary.seed: a list"),
        ({"vary": {"seed": [1, 2, 1]}}, "sweep.vary.seed: a value is given twice"),
        ({"vary": {"optimizer..lr": [1]}}, "'optimizer..lr' is no recipe key"),
        ({"vary": {"optimizer": [{}], "optimizer.lr": [1]}}, "set the same key"),
        ({"vary": {"optimizer": {"lr": [1]}, "optimizer.lr": [2]}}, "set the same key"),
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
    with pytest.raises(UserError, match="a list of at least one value"):
        expand({"sweep": {"vary": nested}})


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
    with pytest.raises(UserError, match="run mofo-2: the recipe is that of mofo"):
        plan_sweep(read_request({"sweep": {"rows": [{}, {"strategy": "mofo"}]}}))


def test_one_run_is_no_sweep_and_a_sweep_no_run(tmp_path):
    with pytest.raises(UserError, match=r"cl_mofo\.sweep\.run_sweep"):
        cl_mofo.run(TWO, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"unknown recipe key 'sweeps' \(did you mean 'sweep'\?\)"):
        resolve({"sweeps": {}})
    with pytest.raises(UserError) as caught:
        resolve({"color": 1})
    assert "sweep" not in str(caught.value)
    assert cl_mofo.run_sweep is run_sweep


# What the command line says


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


# Running them


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A sweep of two runs: its results and its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "notes.txt").write_text("a folder that holds something else already")
    return run_sweep(TWO, out=folder), folder


def test_every_run_has_its_folder_and_results_in_order(done):
    results, folder = done
    assert [r["strategy"] for r in results] == ["sequential", "mofo"]
    for result, name in zip(results, ["sequential", "mofo"], strict=True):
        assert result["folder"] == str(folder / name)
        stored = json.loads((folder / name / "results.json").read_text())
        assert stored == {k: v for k, v in result.items() if k != "folder"}
        assert stored["finished"]


def test_what_is_finished_is_skipped_and_what_is_not_is_made_anew(done):
    results, folder = done
    files = [folder / name / "results.json" for name in ("sequential", "mofo")]
    before = [file.stat().st_mtime_ns for file in files]
    manifest = folder / "mofo" / "manifest.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({k: v for k, v in record.items() if k != "finished"}))
    (folder / "mofo" / "model.partial").mkdir()
    heard = Heard()
    again = run_sweep(TWO, out=folder, observer=heard)
    assert heard.told == [(1, "already finished"), (2, None)]
    assert files[0].stat().st_mtime_ns == before[0]
    assert files[1].stat().st_mtime_ns > before[1]
    assert not (folder / "mofo" / "model.partial").exists()
    assert [r["scores"] for r in again] == [r["scores"] for r in results]
    assert again[0] == results[0]


def test_another_recipes_folder_is_refused_and_nothing_is_touched(done):
    _, folder = done
    (folder / "mofo" / "results.json").rename(folder / "kept")
    before = sorted((f, f.stat().st_mtime_ns) for f in folder.rglob("*") if ".locks" not in f.parts)
    with pytest.raises(UserError) as caught:
        run_sweep(override(TWO, ["optimizer.lr=0.25", "data.eval_limit=3"]), out=folder)
    for name in ("sequential", "mofo"):
        assert (
            f"{folder / name}: holds a run of another recipe: data.eval_limit (None there, 3 here),"
            f" optimizer.lr (0.0005 there, 0.25 here)."
        ) in str(caught.value)
    after = sorted((f, f.stat().st_mtime_ns) for f in folder.rglob("*") if ".locks" not in f.parts)
    assert after == before
    (folder / "kept").rename(folder / "mofo" / "results.json")


def test_settings_of_strategies_that_take_no_part_make_no_other_recipe(done):
    _, folder = done
    kept = folder / "sequential" / "recipe.yaml"
    recipe = yaml.safe_load(kept.read_text())
    recipe["mofo"]["update_fraction"] = 0.77
    kept.write_text(yaml.safe_dump(recipe | {"newer": {"setting": 1}}))
    heard = Heard()
    run_sweep(TWO, out=folder, observer=heard)
    assert heard.told == [(1, "already finished"), (2, "already finished")]


def test_what_is_no_run_is_refused_and_stays(tmp_path):
    (tmp_path / "mofo").mkdir()
    (tmp_path / "mofo" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"no run's recipe\.yaml"):
        run_sweep(TWO, out=tmp_path)
    assert (tmp_path / "mofo" / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "sequential").exists()
    with pytest.raises(UserError, match="is a file"):
        run_sweep(TWO, out=tmp_path / "mofo" / "thesis.tex")


def test_the_folder_of_one_run_takes_no_sweep(done):
    _, folder = done
    with pytest.raises(UserError, match="is the folder of one run"):
        run_sweep(TWO, out=folder / "mofo")


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path):
    rows = [{"optimizer": {"lr": 1e30, "batch_size": 2}}, {"strategy": "sequential"}]
    heard = Heard()
    with pytest.raises(TrainingError, match=r"1 of 2 runs diverged.*\nrun mofo: .*not finite"):
        run_sweep(SMALL | {"sweep": {"rows": rows}}, out=tmp_path, observer=heard)
    assert heard.told == [(1, None), (2, None)]
    assert json.loads((tmp_path / "sequential" / "results.json").read_text())["finished"]
    assert not json.loads((tmp_path / "mofo" / "results.json").read_text())["finished"]


def test_a_run_in_a_sweep_gives_the_bits_of_that_run_alone(tmp_path):
    base = override(
        SMALL,
        [
            "data.train_limit=24",
            "optimizer.batch_size=8",
            "evaluation.decoding=sample",
            "evaluation.losses=true",
            "save_model=true",
        ],
    )
    (tmp_path / "noise.py").write_text(NOISE)
    base["imports"] = [str(tmp_path / "noise.py")]
    first = {"strategy": "sequential+noise", "seed": 5, "deterministic": True}
    rows = [first, {"strategy": "mofo+noise"}]
    _, swept = run_sweep(base | {"sweep": {"rows": rows}}, out=tmp_path / "sweep")
    alone = cl_mofo.run(base | {"strategy": "mofo+noise"}, out=tmp_path / "alone")
    for key in ("scores", "losses", "distance", "metrics"):
        assert swept[key] == alone[key]
    weights, predictions = (
        [(tmp_path / f / part).read_bytes() for f in ("sweep/mofo+noise", "alone")]
        for part in ("model/model.safetensors", "predictions/02-NumGLUE-cm/FOMC.jsonl")
    )
    assert weights[0] == weights[1]
    assert predictions[0] == predictions[1]


def test_what_another_process_runs_is_left_to_it_until_it_dies(tmp_path):
    # The other process has begun the run: its folder is not yet a run's.
    (tmp_path / "mofo").mkdir()
    (tmp_path / "mofo" / "run.log").write_text("")
    script = (
        "import sys, time; from pathlib import Path; from cl_mofo.claim import claim\n"
        "with claim(Path(sys.argv[1])) as free:\n"
        "    print(free, flush=True)\n"
        "    time.sleep(600)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "mofo")], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "True\n"
    heard = Heard()
    results = run_sweep(TWO, out=tmp_path, observer=heard)
    assert heard.told == [(1, None), (2, "another process is running it")]
    assert [r["strategy"] for r in results] == ["sequential"]
    assert [f.name for f in (tmp_path / "mofo").iterdir()] == ["run.log"]
    other.kill()
    other.communicate()
    with claim(tmp_path / "mofo") as free:
        assert free


def test_two_processes_share_the_runs(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump(SMALL | {"sweep": {"vary": {"seed": [1, 2, 3]}}}))
    processes = [command("both.yaml", cwd=tmp_path) for _ in range(2)]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    text = told[0][0] + told[1][0]
    assert text.count("loading tiny") == text.count("Written to") == 3
    for seed in (1, 2, 3):
        folder = tmp_path / "outputs" / "both" / f"mofo-seed{seed}"
        assert json.loads((folder / "results.json").read_text())["finished"]


def test_an_interrupted_sweep_goes_on_by_the_same_command(tmp_path):
    file = tmp_path / "long.yaml"
    rows = [{"strategy": "sequential"}, {"tasks": {"epochs": 500}}]
    file.write_text(yaml.safe_dump(SMALL | {"sweep": {"rows": rows}}))
    process = command("long.yaml", "--out", "out", cwd=tmp_path)
    log = tmp_path / "out" / "mofo" / "run.log"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and "learning" in log.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == (
        "cl-mofo: interrupted; the same command goes on with the run that was stopped\n"
    )
    assert "run 1 of 2: sequential, seed 42\n" in output
    assert "run 2 of 2: mofo, seed 42\n" in output
    assert json.loads((log.parent / "results.json").read_text())["finished"] is False
    heard = Heard()
    request = read_request(str(file), strategy="sequential")
    assert len(run_sweep(request, out=tmp_path / "out", observer=heard)) == 1
    assert heard.told == [(1, "already finished")]


def test_an_interrupt_stops_all_runs(tmp_path):
    class Interrupting(Heard):
        def started(self, recipe, plans, folder):
            if recipe.strategy == "sequential":
                raise KeyboardInterrupt

    heard = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(TWO, out=tmp_path, observer=heard)
    assert heard.told == [(1, None)]
    with claim(tmp_path / "sequential") as free:
        assert free
    heard = Heard()
    assert len(run_sweep(TWO, out=tmp_path, observer=heard)) == 2
    assert heard.told == [(1, None), (2, None)]


def test_the_console_says_which_run_is_next_and_shows_the_table(done):
    _, folder = done
    text = StringIO()
    console = Console(RichConsole(file=text, width=120))
    run_sweep(TWO, out=folder, observer=console)
    for part in (
        f"run 2 of 2: mofo, seed 42: skipped, already finished ({folder / 'mofo'})",
        "divisor t-1",
        f"this table again: cl-mofo report {folder}",
    ):
        assert part in text.getvalue()
    assert text.getvalue().count("sequential") > 1


def test_a_fault_in_one_run_names_it(tmp_path, monkeypatch):
    def broken(recipe, folder, observer):
        raise UserError(f"run {folder.name}: no")

    monkeypatch.setattr(sweep, "_run", broken)
    with pytest.raises(UserError, match="run sequential: no"):
        run_sweep(TWO, out=tmp_path)
