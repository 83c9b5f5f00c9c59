"""What holds for every strategy and for every two of them: driven by `strategy_rows.py`."""

import copy
import itertools

import pytest
import torch
from avalanche.core import SupervisedPlugin

from cl_mofo import mini
from cl_mofo.checkpoint import load_state, save_state
from cl_mofo.data import make_benchmark
from cl_mofo.data.plan import plan_tasks
from cl_mofo.discovery import registry
from cl_mofo.errors import UserError
from cl_mofo.loop import Loop
from cl_mofo.observer import Observer
from cl_mofo.recipes import override
from cl_mofo.resolve import resolve, strategies_of
from cl_mofo.steplog import StepLog
from cl_mofo.strategy import EXCLUSIVE
from tests.strategy_rows import ROWS, TwoTasks

TASKS = ("FOMC", "NumGLUE-cm")
BASE = {
    "model": {"path": "tiny"},
    "data": {"suite": "trace-mini"},
    "tasks": {"only": list(TASKS), "epochs": 1, "prompt_tokens": 96, "answer_tokens": 8},
    "optimizer": {"lr": 1e-3, "batch_size": 4},
    "training": {"micro_batch_size": 2},
}


def recipe_of(names):
    """The small recipe of a combination, with each strategy's settings."""
    settings = [f"{key}={value}" for name in names for key, value in ROWS[name].settings.items()]
    return resolve(override({**BASE, "strategy": "+".join(names)}, settings))


class Watch(SupervisedPlugin):
    """Keep what the last step started from and updated; save the state after a given step."""

    def __init__(self, save_after=None, folder=None):
        super().__init__()
        self.save_after, self.folder = save_after, folder

    def before_training_iteration(self, strategy, **kwargs):
        named = strategy.model.named_parameters()
        self.before_last = {name: parameter.detach().clone() for name, parameter in named}

    def before_update(self, strategy, **kwargs):
        self.updated = frozenset(strategy.gradients())

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.global_step == self.save_after:
            save_state(self.folder, strategy.state_dict())


def build(language_model, names, watch):
    recipe = recipe_of(names)
    torch.manual_seed(recipe.seed)
    log = StepLog(Observer())
    loop = Loop(
        language_model=language_model,
        plans=plan_tasks(recipe, registry()),
        recipe=recipe,
        strategies=strategies_of(recipe, registry()),
        plugins=[watch, log],
    )
    return loop, log


def stream():
    records = mini.records()
    few = {task: {s: rows[:8] for s, rows in records[task].items()} for task in TASKS}
    return list(make_benchmark(few).train_stream)


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def note_changes(loop):
    """Keep the whole gradient before and after each strategy's `on_gradients`, step by step."""
    changes = {}

    def noting(act, noted):
        def on_gradients(loop):
            before = flat(loop.gradients())
            act(loop)
            noted.append((before, flat(loop.gradients())))

        return on_gradients

    for strategy in loop.strategies:
        changes[strategy.name] = []
        strategy.on_gradients = noting(strategy.on_gradients, changes[strategy.name])
    return changes


def two_tasks(language_model, names):
    watch = Watch()
    loop, log = build(copy.deepcopy(language_model), names, watch)
    start = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    changes = note_changes(loop)
    for experience in stream():
        loop.train(experience, eval_streams=[])
        with loop.evaluating():
            pass
    return TwoTasks(loop, log.rows, start, watch.before_last, watch.updated, changes)


def weights(loop):
    return torch.cat([p.detach().flatten() for p in loop.model.parameters()])


PAIRS = list(itertools.combinations(sorted(ROWS), 2))


def clash(*names):
    claims = [registry().strategies[name].phases & EXCLUSIVE for name in names]
    return any(a & b for a, b in itertools.combinations(claims, 2))


RESUMED = [(name,) for name in ROWS] + [(n, "mofo") for n in ROWS if not clash(n, "mofo")]


def test_every_strategy_has_a_row():
    assert ROWS.keys() == registry().strategies.keys()


@pytest.mark.parametrize("name", ROWS)
def test_it_trains_two_tasks_and_acts(tiny, name):
    trained = [p.requires_grad for p in tiny.module.parameters()]
    run = two_tasks(tiny, [name])
    ROWS[name].acted(run)
    for parameter in run.loop.model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.device == tiny.device
        assert parameter.isfinite().all()
    assert all(p.requires_grad for p in run.loop.engine.trainable.values())
    if "model" not in registry().strategies[name].phases:
        assert [p.requires_grad for p in run.loop.model.parameters()] == trained
    for state in run.loop.optimizer.state.values():
        assert all(value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize("names", RESUMED, ids="+".join)
def test_it_goes_on_to_the_bit(tiny, tmp_path, names):
    """From the first task's last step, from the middle of the second, and from between them."""
    whole, _ = build(copy.deepcopy(tiny), names, Watch(save_after=3, folder=tmp_path / "middle"))
    last_step = Watch(save_after=2, folder=tmp_path / "last step")
    whole.plugins.append(last_step)
    first, second = stream()
    whole.train(first, eval_streams=[])
    save_state(tmp_path / "between", whole.state_dict())
    whole.train(second, eval_streams=[])
    for place in ("middle", "between", "last step"):
        torch.manual_seed(99)  # whatever the stopped run had drawn is gone
        loop, _ = build(copy.deepcopy(tiny), names, Watch())
        loop.load_state_dict(load_state(tmp_path / place))
        for experience in (first, second)[loop.task_index :]:
            loop.train(experience, eval_streams=[])
        assert loop.global_step == whole.global_step
        assert torch.equal(weights(loop), weights(whole)), place
        assert [s.record() for s in loop.strategies] == [s.record() for s in whole.strategies]


def test_a_state_saved_by_a_plugin_at_a_tasks_end_goes_on(tiny, tmp_path):
    class Save(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            if strategy.global_step == 2:
                save_state(tmp_path, strategy.state_dict())

    names = ("gem", "mofo")
    whole, _ = build(copy.deepcopy(tiny), names, Save())
    whole.train(stream(), eval_streams=[])
    loop, _ = build(copy.deepcopy(tiny), names, Watch())
    loop.load_state_dict(load_state(tmp_path))
    loop.train(stream()[1], eval_streams=[])
    assert torch.equal(weights(loop), weights(whole))
    assert [len(task) for task in loop.strategies[0].memory] == [3, 3]


def test_a_state_that_is_loaded_and_saved_again_is_the_same(tiny, tmp_path):
    loop, _ = build(copy.deepcopy(tiny), ["sequential"], Watch(save_after=3, folder=tmp_path))
    loop.train(stream(), eval_streams=[])
    again, _ = build(copy.deepcopy(tiny), ["sequential"], Watch())
    state = load_state(tmp_path)
    again.load_state_dict(state)
    assert again.state_dict()["position"] == state["position"]
    assert state["position"]["step"] == 1


def test_a_state_goes_on_with_its_own_task_only(tiny):
    first = stream()[0]
    loop, _ = build(copy.deepcopy(tiny), ["sequential"], Watch())
    loop.train(first, eval_streams=[])
    other, _ = build(copy.deepcopy(tiny), ["sequential"], Watch())
    other.load_state_dict(loop.state_dict())
    with pytest.raises(ValueError, match="goes on with experience 1, not 0"):
        other.train(first, eval_streams=[])


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_every_two_compose_or_are_refused(tiny, pair):
    if clash(*pair):
        with pytest.raises(UserError, match=f"{'.*'.join(sorted(pair))}.*cannot be combined"):
            recipe_of(pair)
        return
    run = two_tasks(tiny, pair)
    for name in pair:
        ROWS[name].acted(run)
    orders = [
        [s.name for s in strategies_of(recipe_of(names), registry())]
        for names in (pair, pair[::-1])
    ]
    assert orders[0] == orders[1]


def test_three_act_together(tiny):
    names = ("replay", "ewc", "mofo")
    run = two_tasks(tiny, names)
    for name in names:
        ROWS[name].acted(run)


def test_a_state_of_other_strategies_is_refused(tiny):
    loop, _ = build(copy.deepcopy(tiny), ["sequential"], Watch())
    other, _ = build(copy.deepcopy(tiny), ["mofo"], Watch())
    with pytest.raises(ValueError, match="strategies mofo, not sequential"):
        loop.load_state_dict(other.state_dict())
