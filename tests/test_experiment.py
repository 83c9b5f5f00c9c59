"""A whole run, from recipe to run folder."""

import json
import math

import pandas as pd
import pytest
import torch
import yaml

import cl_mofo
from cl_mofo import mini
from cl_mofo.data.plan import plan_tasks
from cl_mofo.discovery import registry
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.evaluation import ResultMatrix, score
from cl_mofo.evaluation.distance import distance
from cl_mofo.recipes import override, read_recipe, to_mapping
from cl_mofo.report import load_results
from cl_mofo.resolve import resolve

TASKS = ["FOMC", "Py150", "20Minuten"]
SMALL = override(
    read_recipe("trace-mini"),
    [
        f"tasks.only={TASKS}",
        "data.train_limit=24",
        "data.test_limit=6",
        "tasks.epochs=2",
        "optimizer.batch_size=8",
    ],
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One small run: its results and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    return cl_mofo.run(SMALL, out=folder), folder


def test_results_are_what_the_folder_holds(done):
    results, folder = done
    stored = json.loads((folder / "results.json").read_text())
    assert results.pop("folder") == str(folder)
    assert stored == results
    assert stored["schema"] == 1
    assert stored["tasks"] == TASKS
    assert stored["finished"] is True
    assert stored["strategy"] == "mofo"
    assert stored["seed"] == 42


def test_the_matrix_is_a_lower_triangle_and_gives_op_and_bwt(done):
    results, _ = done
    scores = results["scores"]
    assert [[cell is not None for cell in row] for row in scores] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert all(cell is not None for cell in results["initial"])
    # By hand, from the definitions.
    assert results["op"] == pytest.approx(
        [scores[0][0], sum(scores[1][:2]) / 2, sum(scores[2]) / 3]
    )
    assert results["bwt"][0] is None
    assert results["bwt"][2] == pytest.approx(
        ((scores[2][0] - scores[0][0]) + (scores[2][1] - scores[1][1])) / 2
    )
    matrix = ResultMatrix(TASKS, scores, results["initial"])
    assert results["forgetting"] == pytest.approx(matrix.forgetting())
    assert results["forward_transfer"] is None


def test_scores_follow_from_the_kept_predictions(done):
    results, folder = done
    rows = [
        json.loads(line)
        for line in (folder / "predictions" / "03-20Minuten" / "Py150.jsonl")
        .read_text()
        .splitlines()
    ]
    assert [row["index"] for row in rows] == list(range(6))
    again = score("Py150", [r["prediction"] for r in rows], [r["reference"] for r in rows])
    assert results["scores"][2][1] == pytest.approx(again["similarity"])
    assert results["metrics"][2][1] == pytest.approx(again)
    assert len(list((folder / "predictions").glob("*/*.jsonl"))) == 3 + 1 + 2 + 3


def test_learning_lowers_the_loss_on_the_task(done):
    results, _ = done
    for i in range(len(TASKS)):
        assert results["losses"][i][i] < results["initial_losses"][i]
    assert results["distance"] == sorted(results["distance"])


def test_metrics_have_one_row_per_step(done):
    _, folder = done
    steps = pd.read_parquet(folder / "metrics.parquet")
    assert len(steps) == len(TASKS) * 2 * 3  # two epochs of 24 examples in eights
    assert list(steps.global_step) == list(range(1, len(steps) + 1))
    assert steps.lr.max() == pytest.approx(5e-4)
    assert (steps.positions >= steps.tokens).all()
    assert steps.loss.between(0, 20).all()


def test_the_recipe_is_kept_whole_and_runs_again(done):
    _, folder = done
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert kept == to_mapping(resolve(SMALL))
    assert resolve(kept) == resolve(SMALL)


def test_the_manifest_says_where_the_figures_come_from(done):
    _, folder = done
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    assert len(manifest["model"]["sha256"]) == 64
    assert manifest["model"]["parameters"] > 500_000
    assert len(manifest["data"]) == 9
    assert manifest["hardware"]["cores"] >= 1
    assert manifest["started"] <= manifest["finished"]


def test_figures_log_and_model_are_there(done):
    _, folder = done
    assert (folder / "figures" / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figures" / "curves.png").stat().st_size > 5000
    assert "finished: OP" in (folder / "run.log").read_text()
    assert not list(folder.rglob("*.partial"))


def test_the_saved_model_is_the_final_one(done):
    results, folder = done
    again = cl_mofo.run(
        override(SMALL, [f"model.path={folder / 'model'}", "tasks.epochs=1", "data.train_limit=1"]),
        out=folder.parent / "again",
    )
    assert again["initial"] == pytest.approx(results["scores"][2])


def test_the_same_seed_gives_the_same_bits_and_another_does_not(done, tmp_path):
    results, folder = done
    again = cl_mofo.run(SMALL, out=tmp_path / "again")
    for key in ("scores", "losses", "distance", "metrics"):
        assert again[key] == results[key]
    weights = [
        (f / "model" / "model.safetensors").read_bytes() for f in (folder, tmp_path / "again")
    ]
    assert weights[0] == weights[1]
    first = override(SMALL, ["seed=7", f"tasks.only=[{TASKS[0]}]"])
    other = cl_mofo.run(first, out=tmp_path / "other")
    assert other["losses"][0][0] != results["losses"][0][0]


def test_all_tasks_can_be_tested_after_each(tmp_path):
    results = cl_mofo.run(
        override(SMALL, ["evaluation.tasks=all", "tasks.only=[FOMC, Py150]", "save_model=false"]),
        out=tmp_path / "all",
    )
    assert all(cell is not None for row in results["scores"] for cell in row)
    gain = results["scores"][0][1] - results["initial"][1]
    assert results["forward_transfer"] == pytest.approx(gain)
    assert not (tmp_path / "all" / "model").exists()


def test_what_is_not_asked_for_is_not_measured(tmp_path):
    results = cl_mofo.run(
        override(
            SMALL,
            [
                "tasks.only=[FOMC]",
                "evaluation.initial=false",
                "evaluation.losses=false",
                "evaluation.distance=false",
            ],
        ),
        out=tmp_path / "less",
    )
    assert results["initial"] is results["losses"] is results["distance"] is None
    assert results["bwt"] == [None]


def test_the_order_of_tasks_is_the_recipes(tmp_path):
    results = cl_mofo.run(
        override(SMALL, ["tasks.only=[Py150, FOMC]", "data.train_limit=4"]), out=tmp_path / "order"
    )
    assert results["tasks"] == ["Py150", "FOMC"]


def test_traces_protocol_runs(tmp_path):
    results = cl_mofo.run(
        override(SMALL, ["protocol=trace-v1", "tasks.only=[FOMC]", "data.train_limit=8"]),
        out=tmp_path / "trace",
    )
    assert results["protocol"] == "trace-v1"


def test_mofo_stays_nearer_than_default_fine_tuning(done, tmp_path):
    results, _ = done
    default = cl_mofo.run(override(SMALL, ["strategy=sequential"]), out=tmp_path / "adamw")
    assert results["distance"][-1] < 0.8 * default["distance"][-1]


def test_an_answer_cut_short_is_never_right(tmp_path, monkeypatch):
    from cl_mofo import examine
    from cl_mofo.evaluation.answers import Answer

    def cut(language_model, encoder, records, settings, **kwargs):
        return [Answer("A", finished=False, tokens=1) for _ in records]

    monkeypatch.setattr(examine, "answer", cut)
    results = cl_mofo.run(
        override(SMALL, ["tasks.only=[FOMC]", "data.train_limit=4"]), out=tmp_path / "cut"
    )
    assert results["scores"] == [[0.0]]


def test_a_run_folder_is_never_written_into(done):
    _, folder = done
    with pytest.raises(UserError, match=r"holds a run. Go on with it by --resume .*--overwrite"):
        cl_mofo.run(SMALL, out=folder)
    with pytest.raises(UserError, match="is a file"):
        cl_mofo.run(SMALL, out=folder / "results.json")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.path=/nowhere/at/all", "there is no such folder"),
        ("model.path=nobody/nothing-of-that-name", "--model PATH"),
        ("data.suite=trace", "data.path"),
        ("data.suite=trase", "did you mean 'trace'"),
        ("tasks.answer_tokens=5000", "positions"),
        ("data.path=/data", "is embedded and reads no folder"),
        ("model.device=cuda", "no CUDA"),
    ],
)
def test_mistakes_leave_no_folder_behind(tmp_path, assignment, message):
    if "cuda" in assignment and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(UserError, match=message):
        cl_mofo.run(override(SMALL, [assignment]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_keeps_what_it_measured(tmp_path):
    with pytest.raises(TrainingError, match="not finite"):
        cl_mofo.run(
            override(SMALL, ["optimizer.lr=1e30", "optimizer.max_grad_norm=null"]),
            out=tmp_path / "wild",
        )
    stored = json.loads((tmp_path / "wild" / "results.json").read_text())
    assert stored["finished"] is False
    assert stored["initial"] is not None
    assert "TrainingError" in (tmp_path / "wild" / "run.log").read_text()


def test_weights_broken_by_the_last_step_stop_the_run_with_its_steps_kept(tmp_path):
    with pytest.raises(TrainingError, match="not finite"):
        cl_mofo.run(
            override(
                SMALL,
                [
                    "optimizer.lr=1e38",
                    "optimizer.batch_size=24",
                    "tasks.epochs=1",
                    "evaluation.initial=false",
                ],
            ),
            out=tmp_path / "wild",
        )
    assert not load_results(tmp_path / "wild").finished
    assert len(pd.read_parquet(tmp_path / "wild" / "metrics.parquet")) == 1


def test_the_validation_split_can_be_scored_instead(tmp_path):
    few = ["tasks.only=[FOMC]", "data.train_limit=4", "data.eval_limit=3"]
    results = cl_mofo.run(override(SMALL, [*few, "evaluation.split=eval"]), out=tmp_path / "eval")
    assert results["split"] == "eval"
    kept = (tmp_path / "eval" / "predictions" / "01-FOMC" / "FOMC.jsonl").read_text()
    references = [json.loads(line)["reference"] for line in kept.splitlines()]
    assert references == [row["answer"] for row in mini.records()["FOMC"]["eval"][:3]]


def test_a_ninth_task_leaves_the_embedded_suite_as_it_is(tmp_path):
    file = tmp_path / "ninth.py"
    file.write_text(
        "import dataclasses\n"
        "from cl_mofo.tasks.fomc import TASK as FOMC\n"
        "TASK = dataclasses.replace(FOMC, name='Ninth', position=9)\n"
    )
    recipe = resolve(override(read_recipe("trace-mini"), [f"imports=[{file}]"]))
    assert [plan.task.name for plan in plan_tasks(recipe, registry(recipe.imports))] == list(
        mini.TASKS
    )


def test_distance_is_the_mean_relative_change():
    module = torch.nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, 4.0]]))
        module.bias.copy_(torch.tensor([2.0]))
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    with torch.no_grad():
        module.weight.add_(torch.tensor([[0.3, 0.4]]))  # 0.5 of 5: a tenth
        module.bias.add_(1.0)  # 1 of 2: a half
    assert distance(dict(module.named_parameters()), start) == pytest.approx((0.1 + 0.5) / 2)
    start["bias"] = torch.zeros(1)
    assert distance(dict(module.named_parameters()), start) == pytest.approx(0.1)


def test_a_users_own_suite_runs(tmp_path):
    file = tmp_path / "capitals.py"
    file.write_text(
        "from cl_mofo.evaluation.metrics import accuracy\n"
        "from cl_mofo.task import Task\n"
        "def measure(predictions, references, sources):\n"
        "    return {'accuracy': accuracy(predictions, references)}\n"
        "TASK = Task(name='Capitals', suite='mine', position=1, language='en', epochs=1,\n"
        "    headline='accuracy', metrics=('accuracy',), prompt_tokens=32, answer_tokens=8,\n"
        "    measure=measure, source='an atlas', sample={'prompt': 'France?', 'answer': 'Paris'})\n"
    )
    (tmp_path / "data" / "Capitals").mkdir(parents=True)
    for split in ("train", "eval", "test"):
        (tmp_path / "data" / "Capitals" / f"{split}.json").write_text(
            json.dumps([{"prompt": "France?", "answer": "Paris"}] * 4)
        )
    results = cl_mofo.run(
        {
            "imports": [str(file)],
            "model": {"path": "tiny"},
            "data": {"suite": "mine", "path": str(tmp_path / "data")},
            "tasks": {"epochs": 40},
            "optimizer": {"lr": 1e-3, "batch_size": 4},
            "strategy": "sequential",
        },
        out=tmp_path / "run",
    )
    assert results["scores"] == [[100.0]]
    assert not math.isnan(results["op"][0])
