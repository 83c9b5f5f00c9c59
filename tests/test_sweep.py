"""Several runs from one recipe: how they run, and go on where they were stopped."""

import json
from contextlib import ExitStack
from io import StringIO

import pytest
import yaml
from rich.console import Console as RichConsole

import cl_mofo
from cl_mofo import cli, experiment
from cl_mofo.claim import claim
from cl_mofo.console import Console
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.folder import RunFolder
from cl_mofo.mappings import merge
from cl_mofo.observer import Observer
from cl_mofo.recipes import override, read_request
from cl_mofo.report import load_runs
from cl_mofo.report.summary import entries
from cl_mofo.sweep import run_sweep
from tests.locks import held
from tests.small_run import data_of

SMALL = {
    "data": {"suite": "trace-mini", "train_limit": 8, "test_limit": 4},
    "tasks": {"only": ["FOMC", "NumGLUE-cm"], "epochs": 1},
    "evaluation": {"losses": False, "initial": False},
    "save_model": False,
}
TWO = SMALL | {"sweep": {"rows": [{"strategy": "sequential"}, {"strategy": "mofo"}]}}
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


def test_a_kept_recipe_is_compared_by_what_it_means(done):
    _, folder = done
    kept = folder / "sequential" / "recipe.yaml"
    before = kept.read_text()
    recipe = yaml.safe_load(before)
    recipe["mofo"]["update_fraction"] = 0.77  # takes no part
    del recipe["evaluation"]["top_k"], recipe["deterministic"]  # came later, with a default
    kept.write_text(yaml.safe_dump(recipe | {"newer": {"setting": 1}}))
    heard = Heard()
    run_sweep(TWO, out=folder, observer=heard)
    assert heard.told == [(1, "already finished"), (2, "already finished")]
    kept.write_text(before)


def test_data_that_have_moved_are_the_same_data_until_they_change(tmp_path):
    (tmp_path / "here").mkdir()
    data_of(tmp_path / "here")

    def told(place, seeds=(1,)):
        heard, seeds = Heard(), [*seeds]
        recipe = merge(SMALL, {"data": {"suite": "trace", "path": str(place)}})
        recipe = merge(recipe, {"tasks": {"only": ["FOMC"]}})
        varied = {"sweep": {"vary": {"seed": seeds}}}
        run_sweep(recipe | varied, out=tmp_path / "out", observer=heard)
        return heard.told

    assert told(tmp_path / "here") == [(1, None)]
    (tmp_path / "here").rename(tmp_path / "there")
    assert told(tmp_path / "there", [1, 2]) == [(1, "already finished"), (2, None)]
    assert [len(row.runs) for row in entries(load_runs([tmp_path / "out"]))] == [2]
    file = tmp_path / "there" / "FOMC" / "test.json"
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    with pytest.raises(UserError, match="a run on other data than these"):
        told(tmp_path / "there")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "gone"}, "unknown strategy 'gone'"),
        ({"data": {"gone": 1}}, "unknown recipe key 'data.gone'"),
        ({"imports": ["CODE"]}, "its imports are"),
    ],
)
def test_a_kept_recipe_that_is_none_any_more_is_refused_and_runs_no_code(
    done, tmp_path, change, message
):
    _, folder = done
    (tmp_path / "code.py").write_text("raise SystemExit('ran')\n")
    if "imports" in change:
        change = {"imports": [str(tmp_path / "code.py")]}
    kept = folder / "mofo" / "recipe.yaml"
    before = kept.read_text()
    kept.write_text(yaml.safe_dump(yaml.safe_load(before) | change))
    with pytest.raises(
        UserError, match=f"recipe.yaml is not valid here: .*{message}.*Move it away"
    ):
        run_sweep(TWO, out=folder)
    kept.write_text(before)


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


def test_a_run_that_diverges_stops_no_other_and_is_not_run_again(tmp_path):
    rows = [{"optimizer": {"lr": 1e30, "batch_size": 2}}, {"strategy": "sequential"}]
    told = []
    for skipped in ([None, None], ["it diverged", "already finished"]):
        heard = Heard()
        with pytest.raises(TrainingError) as caught:
            run_sweep(SMALL | {"sweep": {"rows": rows}}, out=tmp_path, observer=heard)
        assert heard.told == list(enumerate(skipped, 1))
        told.append(str(caught.value))
    first, reason, again = told[0].splitlines()
    assert first.startswith("1 of 2 runs failed")
    assert reason.startswith("run mofo: ")
    assert "not finite" in reason
    assert "until its folder" in again
    assert told[1] == told[0]
    assert json.loads((tmp_path / "sequential" / "results.json").read_text())["finished"]
    assert not json.loads((tmp_path / "mofo" / "results.json").read_text())["finished"]


def test_a_run_in_a_sweep_gives_the_bits_of_that_run_alone(tmp_path):
    base = override(
        SMALL,
        [
            "data.train_limit=16",
            "data.test_limit=2",
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


def test_what_another_holds_is_left_to_it(tmp_path):
    # The other has begun the run: its folder is not yet a run's.
    (tmp_path / "mofo").mkdir()
    (tmp_path / "mofo" / "run.log").write_text("")
    heard = Heard()
    with claim(tmp_path / "mofo") as free:
        assert free
        results = run_sweep(TWO, out=tmp_path, observer=heard)
    assert heard.told == [(1, None), (2, "another process is running it")]
    assert [r["strategy"] for r in results] == ["sequential"]
    assert [f.name for f in (tmp_path / "mofo").iterdir()] == ["run.log"]


@pytest.mark.parametrize("finished", [True, False])
def test_what_another_held_is_looked_at_again_in_the_end(tmp_path, finished):
    if finished:
        run_sweep(TWO, out=tmp_path)
    else:
        (tmp_path / "sequential").mkdir()
    with ExitStack() as stack:
        stack.enter_context(claim(tmp_path / "sequential"))

        class Freeing(Heard):
            def next_run(self, number, total, recipe, folder, skipped):
                super().next_run(number, total, recipe, folder, skipped)
                if number == 2:
                    stack.close()

        heard = Freeing()
        results = run_sweep(TWO, out=tmp_path, observer=heard)
    done = "already finished" if finished else None
    assert heard.told == [(1, "another process is running it"), (2, done), (1, done)]
    assert [r["strategy"] for r in results] == ["sequential", "mofo"]


def test_a_single_run_under_way_is_left_alone(tmp_path):
    folder = RunFolder(tmp_path / "mofo", "mofo")  # what `cl-mofo run --out` holds while it runs
    folder.log.info("under way")
    heard = Heard()
    run_sweep(TWO, out=tmp_path, observer=heard)
    assert heard.told == [(1, None), (2, "another process is running it")]
    assert "under way" in (tmp_path / "mofo" / "run.log").read_text()
    folder.close()
    assert not RunFolder.in_use(tmp_path / "mofo")


def test_a_finished_run_on_other_data_is_refused(tmp_path, monkeypatch):
    for name, text in (("one", "Paris"), ("two", "Lyon")):
        for split in ("train", "eval", "test"):
            file = tmp_path / name / "FOMC" / f"{split}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([{"prompt": "The capital?", "answer": text}]))
    data = {"data": {"suite": "trace", "path": "$SOMEWHERE"}, "model": {"path": "tiny"}}
    only = SMALL | data | {"tasks": {"only": ["FOMC"], "epochs": 1, "prompt_tokens": 32}}
    one = only | {"sweep": {"rows": [{"strategy": "sequential"}]}}
    monkeypatch.setenv("SOMEWHERE", str(tmp_path / "one"))
    run_sweep(one, out=tmp_path / "out")
    monkeypatch.setenv("SOMEWHERE", str(tmp_path / "two"))
    with pytest.raises(UserError, match="sequential: holds a run on other data"):
        run_sweep(one, out=tmp_path / "out")


def test_a_run_that_runs_out_of_memory_stops_no_other(tmp_path, monkeypatch):
    def short(recipe, out, observer, resume):
        if recipe.strategy == "sequential":
            raise RuntimeError("out of memory")
        return {"strategy": recipe.strategy}

    monkeypatch.setattr(experiment, "run", short)
    heard = Heard()
    with pytest.raises(TrainingError, match="run sequential: out of memory"):
        run_sweep(TWO, out=tmp_path, observer=heard)
    assert heard.told == [(1, None), (2, None)]


def test_a_process_that_is_killed_frees_its_run(tmp_path):
    with claim(tmp_path / "mofo"):
        (lock,) = (tmp_path / ".locks").iterdir()
    with held(lock) as other:
        with claim(tmp_path / "mofo") as free:
            assert not free
        other.kill()
    with claim(tmp_path / "mofo") as free:
        assert free


def test_an_interrupt_stops_all_runs_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    def interrupted(console, loop):
        raise KeyboardInterrupt

    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(TWO))
    monkeypatch.setattr(Console, "learned", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.run(str(file), out=tmp_path)
    assert caught.value.code == 130
    told = capsys.readouterr()
    assert "run 1 of 2: sequential\n" in told.out
    assert "run 2" not in told.out
    assert told.err.endswith(
        f"To go on: cl-mofo resume {tmp_path}/sequential\n"
        f"The command that began this goes on with all 2 runs\n"
    )
    assert not json.loads((tmp_path / "sequential" / "results.json").read_text())["finished"]
    heard = Heard()
    run_sweep(read_request(str(file), strategy="sequential"), out=tmp_path, observer=heard)
    assert heard.told == [(1, None)]


def test_the_console_says_which_run_is_next_and_shows_the_table(done):
    _, folder = done
    text = StringIO()
    console = Console(RichConsole(file=text, width=120))
    run_sweep(TWO, out=folder, observer=console)
    for part in (
        f"run 2 of 2: mofo: skipped, already finished ({folder / 'mofo'})",
        "divisor t-1",
        f"this table again: cl-mofo report {folder}",
    ):
        assert part in text.getvalue()
    assert text.getvalue().count("sequential") > 1


def test_a_fault_in_one_run_names_it(tmp_path, monkeypatch):
    def broken(recipe, out, observer, resume):
        raise UserError("no")

    monkeypatch.setattr(experiment, "run", broken)
    with pytest.raises(UserError, match=r"^run sequential: no$"):
        run_sweep(TWO, out=tmp_path)
