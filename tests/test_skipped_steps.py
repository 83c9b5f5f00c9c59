"""A step whose loss or gradient is not finite: left out whole, counted, and at last refused."""

import copy
import io
import math

import pandas as pd
import pytest
import torch
from rich.console import Console as RichConsole

import cl_mofo
from cl_mofo import experiment, mini
from cl_mofo.checkpoint import load_state
from cl_mofo.console import Console
from cl_mofo.data import make_benchmark
from cl_mofo.data.plan import plan_tasks
from cl_mofo.discovery import registry
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.loop import Loop
from cl_mofo.observer import Observer
from cl_mofo.recipes import override
from cl_mofo.report import load_results
from cl_mofo.resolve import resolve, strategies_of
from cl_mofo.steplog import StepLog
from cl_mofo.strategies.mofo import MoFO
from cl_mofo.strategy import Strategy
from tests.poison import Poison, Witness
from tests.ranks import on_ranks
from tests.strategy_rows import ROWS

TASKS = ("FOMC", "NumGLUE-cm")
BASE = {
    "model": {"path": "tiny"},
    "data": {"suite": "trace-mini"},
    "tasks": {"only": list(TASKS), "epochs": 1, "prompt_tokens": 64, "answer_tokens": 8},
    "optimizer": {"lr": 1e-3, "batch_size": 2, "schedule": "constant"},
    "training": {"micro_batch_size": 1},
}
STEPS = 5
"""Of each task, of which two may be skipped."""
NAN, INF = float("nan"), float("inf")


class Heard(Observer):
    def __init__(self):
        self.told = []

    def skipped(self, loop, step, reason):
        assert step == loop.step
        self.told.append((loop.global_step, reason))


def stream(rows=2 * STEPS):
    records = mini.records()
    few = {task: {s: found[:rows] for s, found in records[task].items()} for task in TASKS}
    return list(make_benchmark(few).train_stream)


def build(language_model, names, poison=None, settings=(), watch=None, observer=None):
    of_rows = [f"{key}={value}" for name in names for key, value in ROWS[name].settings.items()]
    recipe = resolve(override({**BASE, "strategy": "+".join(names)}, [*of_rows, *settings]))
    torch.manual_seed(recipe.seed)
    log = StepLog(observer or Observer())
    loop = Loop(
        language_model=copy.deepcopy(language_model),
        plans=plan_tasks(recipe, registry()),
        recipe=recipe,
        strategies=(*strategies_of(recipe, registry()), *([poison] if poison else [])),
        plugins=[log, *([watch] if watch else [])],
    )
    return loop, log.rows


def train(loop, experiences=None):
    for experience in experiences or stream():
        loop.train(experience, eval_streams=[])


def weights(loop):
    return torch.cat([p.detach().flatten() for p in loop.model.parameters()])


def assert_only_finite_gradients_are_seen(loop):
    for strategy in loop.strategies:

        def looking(loop, act=strategy.on_gradients):
            assert all(gradient.isfinite().all() for gradient in loop.gradients().values())
            act(loop)

        strategy.on_gradients = looking


KINDS = [
    *[[name] for name in ROWS],
    ["ewc", "mofo"],
    ["gem", "mofo"],
    ["lora", "mofo"],
    ["replay", "hft", "agem", "mofo"],
]
TRACE = ["ewc.variant=trace", "ewc.fisher_examples=1000", "ewc.strength=400"]


@pytest.mark.parametrize(
    ("names", "settings"),
    [*[(names, []) for names in KINDS], (["ewc"], TRACE)],
    ids=[*map("+".join, KINDS), "ewc of TRACE"],
)
def test_a_broken_step_changes_nothing_and_the_run_goes_on_to_the_same_bits(
    tiny, tmp_path, names, settings
):
    """The second step of the first task; the first, the fourth of the second."""
    broken = {1: NAN, STEPS + 3: INF}, (STEPS,)
    watch, heard = Witness(save_after=STEPS + 1, folder=tmp_path), Heard()
    loop, rows = build(tiny, names, Poison(*broken), settings, watch, heard)
    assert_only_finite_gradients_are_seen(loop)
    train(loop)
    skipped = [1, STEPS, STEPS + 3]
    assert [i for i, row in enumerate(rows) if row["skipped"]] == skipped
    assert [i for i, same in enumerate(watch.same) if same] == skipped
    assert [step - 1 for step, _ in heard.told] == skipped
    assert "the loss is not finite (nan)" in heard.told[1][1]
    assert "gradient of" in heard.told[0][1]
    assert (loop.skipped, loop.skipped_in_task) == (3, 2)
    assert weights(loop).isfinite().all()
    for i, row in enumerate(rows):
        assert math.isfinite(row["loss"]) == (i != STEPS)
        assert math.isfinite(row["grad_norm"]) == (i not in skipped)
    # Saved right after a skipped step, and gone on with.
    torch.manual_seed(99)
    again, _ = build(tiny, names, Poison(*broken), settings)
    again.load_state_dict(load_state(tmp_path))
    assert (again.skipped, again.skipped_in_task) == (2, 1)
    train(again, stream()[again.task_index :])
    assert (again.skipped, again.skipped_in_task) == (3, 2)
    assert torch.equal(weights(again), weights(loop))


def test_order_and_schedule_go_on_as_if_the_step_had_been_taken(tiny):
    figures = []
    for poison in (Poison(), Poison({1: NAN})):
        loop, rows = build(tiny, ["mofo"], poison, ["optimizer.schedule=cosine"])
        train(loop)
        figures.append([(r["step"], r["lr"], r["tokens"], r["positions"]) for r in rows])
    assert figures[0] == figures[1]
    assert len({lr for _, lr, *_ in figures[1]}) == STEPS


def test_a_gradient_that_strategies_have_broken_is_skipped_too(tiny):
    class Overflow(Strategy):
        name = "overflow"

        def on_gradients(self, loop):
            if loop.step == 1:
                loop.model.lm_head.weight.grad[0, 0] = INF

    watch = Witness()
    loop, rows = build(tiny, ["mofo"], Overflow(), watch=watch)
    train(loop, stream()[:1])
    assert [row["skipped"] for row in rows] == watch.same == [0, 1, 0, 0, 0]


def test_a_penalty_that_overflows_leaves_no_mark_in_traces_fisher_information(tiny):
    settings = [*TRACE, "ewc.strength=3e38", "training.max_skipped_steps=0"]
    loop, _ = build(tiny, ["ewc"], settings=settings)
    with pytest.raises(TrainingError, match="NumGLUE-cm, step 2 of 5"):  # the first is the anchor
        train(loop)
    assert all(fisher.isfinite().all() for fisher in loop.strategies[0].fisher.values())
    assert weights(loop).isfinite().all()


def test_one_too_many_stops_the_run_and_says_which_rows(tiny):
    settings = ["training.max_skipped_steps=1", "optimizer.batch_size=4"]
    loop, _ = build(tiny, ["replay"], Poison({6: NAN, 9: NAN}), settings)
    first, second = stream(20)
    train(loop, [first])
    with pytest.raises(TrainingError) as caught:
        train(loop, [second])
    message = str(caught.value)
    batch = loop.drawn(0)[loop.batch]
    rows = [i for i, example in enumerate(loop.examples) if any(example is e for e in batch)]
    assert len(rows) == 4
    told = f"training rows, counted from 0: {', '.join(map(str, rows))}. "
    assert told in message
    assert "task NumGLUE-cm, step 5 of 8" in message  # three steps more of ten replayed rows
    assert "the gradient of model.embed_tokens.weight" in message
    assert "skipped before: 1; training.max_skipped_steps is 1" in message
    assert "Lower optimizer.lr; if" in message  # in float32 it computes already
    assert (loop.skipped, loop.step) == (1, 4)


def test_rows_of_a_replayed_batch_are_counted(tiny):
    settings = ["training.max_skipped_steps=0", "replay.schedule=interleaved"]
    loop, _ = build(tiny, ["replay"], Poison({STEPS: NAN}), settings)
    with pytest.raises(TrainingError, match=r"counted from 0: \d+, and 1 other examples\. Lower"):
        train(loop)


@pytest.mark.parametrize(("rows", "most"), [(2, 0), (4, 0), (6, 1), (10, 2), (24, 5)])
def test_half_of_a_tasks_steps_may_not_be_skipped(tiny, rows, most):
    poison = Poison(dict.fromkeys(range(1, 99) if most else range(99), NAN))
    loop, _ = build(tiny, ["sequential"], poison)
    with pytest.raises(TrainingError, match=f"a task of {rows // 2} steps may skip {most}"):
        train(loop, stream(rows))
    assert loop.skipped == most


def test_the_limit_is_a_tasks_own(tiny):
    poison = Poison(dict.fromkeys((0, 1, STEPS, STEPS + 1), INF))
    loop, _ = build(tiny, ["mofo"], poison)
    train(loop)
    assert (loop.skipped, loop.skipped_in_task) == (4, 2)


@pytest.mark.parametrize("value", ["-1", "1.5", "true", "null"])
def test_the_limit_is_a_whole_number(value):
    with pytest.raises(UserError, match="max_skipped_steps"):
        resolve(override(BASE, [f"training.max_skipped_steps={value}"]))


def test_a_run_shows_and_records_what_it_skipped(tmp_path, monkeypatch):
    poison = Poison({1: NAN}, (2,))
    monkeypatch.setattr(experiment, "strategies_of", lambda *_: (MoFO(), poison))
    text = io.StringIO()
    few = ["data.test_limit=2", f"data.train_limit={2 * STEPS}", "tasks.only=[FOMC]"]
    recipe = override({**BASE, "strategy": "mofo"}, few)
    observer = Console(RichConsole(file=text, width=100))
    cl_mofo.run(recipe, out=tmp_path / "run", observer=observer)
    lines = [line for line in text.getvalue().splitlines() if line.startswith("skipped")]
    assert len(lines) == 2
    assert lines[1] == "skipped step 3 of 5 of FOMC: the loss is not finite (nan)"
    steps = pd.read_parquet(tmp_path / "run" / "metrics.parquet")
    assert steps["skipped"].tolist() == [0, 1, 1, 0, 0]
    assert steps["loss"].isna().tolist() == [False, False, True, False, False]
    assert steps["grad_norm"].isna().tolist() == [False, True, True, False, False]
    assert load_results(tmp_path / "run").finished


@pytest.mark.slow
def test_ranks_skip_alike_what_one_of_them_finds(tmp_path):
    found = on_ranks("tests.poison_cases:skip", 2, tmp_path)
    assert found[0] == found[1]
    for row in found[0]:
        assert row["skipped"] == row["same"] == [0, 1, 0, 0, 1], row["engine"]
        assert row["moved"]
        assert row["finite"]
        assert row["resumed"]
    assert {row["engine"] for row in found[0]} == {"FSDP2", "ZeRO-2"}
