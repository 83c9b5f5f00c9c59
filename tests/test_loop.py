"""The shared loop: what a step is, where hooks act, and that it repeats to the bit."""

import copy

import pytest
import torch
import torch.nn.functional as F

from cl_mofo import mini
from cl_mofo.data import make_benchmark
from cl_mofo.data.plan import encoder_for, plan_tasks
from cl_mofo.discovery import registry
from cl_mofo.errors import TrainingError
from cl_mofo.loop import Loop
from cl_mofo.recipes import override
from cl_mofo.resolve import resolve
from cl_mofo.strategy import Strategy

BASE = {
    "model": {"path": "tiny"},
    "data": {"suite": "trace-mini"},
    "strategy": "sequential",
    "tasks": {
        "only": ["FOMC", "NumGLUE-cm"],
        "epochs": 1,
        "prompt_tokens": 96,
        "answer_tokens": 48,
    },
    "optimizer": {"lr": 1e-3, "batch_size": 4},
    "training": {"micro_batch_size": 4},
}


def build(language_model, *assignments, strategies=None, **avalanche):
    recipe = resolve(override(BASE, assignments))
    if strategies is None:
        strategies = [registry().strategy(recipe.strategy)(recipe.strategies[recipe.strategy])]
    return Loop(
        language_model=language_model,
        plans=plan_tasks(recipe, registry()),
        recipe=recipe,
        strategies=strategies,
        **avalanche,
    )


def stream(train=10, tasks=("FOMC", "NumGLUE-cm")):
    records = mini.records()
    few = {t: {s: rows[:train] for s, rows in records[t].items()} for t in tasks}
    return make_benchmark(few).train_stream


def learn(loop, experiences):
    for experience in experiences:
        loop.train(experience, eval_streams=[])
    return loop


class Spy(Strategy):
    """Writes down what it sees."""

    name = "spy"

    def __init__(self):
        super().__init__()
        self.calls, self.gradients, self.losses, self.lrs, self.tokens = [], [], [], [], []

    def before_experience(self, loop):
        self.calls.append(f"before_experience {loop.plan.task.name} {loop.total_steps}")

    def before_step(self, loop):
        self.calls.append("before_step")

    def on_loss(self, loop, micro_batch, loss):
        self.calls.append("on_loss")
        return loss

    def on_gradients(self, loop):
        self.calls.append("on_gradients")
        self.gradients.append({n: p.grad.clone() for n, p in loop.model.named_parameters()})

    def after_step(self, loop):
        self.calls.append("after_step")
        self.losses.append(loop.step_loss.item())
        self.lrs.append(loop.lr)
        self.tokens.append(loop.step_supervised)

    def after_experience(self, loop):
        self.calls.append("after_experience")


def test_hooks_act_in_the_documented_order(tiny):
    spy = Spy()
    learn(build(tiny, "training.micro_batch_size=2", strategies=[spy]), list(stream(6))[:1])
    step = ["before_step", "on_loss", "on_loss", "on_gradients", "after_step"]
    short = ["before_step", "on_loss", "on_gradients", "after_step"]
    # Six examples in batches of four: one full step, and the last short one, stepped not dropped.
    assert spy.calls == ["before_experience FOMC 2", *step, *short, "after_experience"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_change_neither_loss_nor_gradient(tiny, size):
    spies = []
    for micro in (4, size):
        spy = Spy()
        model = copy.deepcopy(tiny)
        model.module.double()  # so that no processor's rounding matters
        learn(build(model, f"training.micro_batch_size={micro}", strategies=[spy]), stream(6))
        spies.append(spy)
    whole, split = spies
    assert split.tokens == whole.tokens
    assert split.losses == pytest.approx(whole.losses, rel=1e-6)
    for name, gradient in whole.gradients[0].items():
        torch.testing.assert_close(split.gradients[0][name], gradient, rtol=1e-6, atol=1e-10)


def test_a_steps_loss_is_the_mean_over_its_supervised_tokens(tiny):
    spy = Spy()
    loop = build(copy.deepcopy(tiny), strategies=[spy])
    (experience, _) = stream(4)
    learn(loop, [experience])
    # The slow way: one example at a time, full logits, no padding.
    encoder = encoder_for(tiny.tokenizer, loop.plans[0], loop.recipe)
    total, count = 0.0, 0
    for i in range(4):
        row = experience.dataset[i]
        example = encoder.encode(row["prompt"], row["answer"])
        with torch.no_grad():
            logits = tiny.module(torch.tensor([example.ids])).logits[0]
        start = len(example) - example.supervised
        targets = torch.tensor(example.ids[start:])
        total += F.cross_entropy(logits[start - 1 : -1], targets, reduction="sum").item()
        count += example.supervised
    assert spy.tokens == [count]
    assert spy.losses == pytest.approx([total / count], rel=1e-5)


def test_a_batch_is_averaged_over_tokens_or_as_trace_does_over_micro_batches(tiny):
    def losses(*assignments):
        spy = Spy()
        loop = build(
            copy.deepcopy(tiny),
            "training.micro_batch_size=1",
            "tasks.only=[20Minuten]",
            *assignments,
            strategies=[spy],
        )
        learn(loop, stream(4, ["20Minuten"]))
        return spy

    one = losses("optimizer.batch_size=1", "optimizer.lr=1e-30")
    by_token = sum(x * n for x, n in zip(one.losses, one.tokens, strict=True)) / sum(one.tokens)
    assert losses().losses == pytest.approx([by_token], rel=1e-6)
    traces = losses("training.loss=micro_batches").losses
    assert traces == pytest.approx([sum(one.losses) / 4], rel=1e-6)
    assert len(set(one.tokens)) > 1


def test_the_cosine_restarts_with_each_task_and_spans_it(tiny):
    spy = Spy()
    learn(build(tiny, "tasks.epochs=2", strategies=[spy]), stream(8))
    # Two epochs of two steps: 1/2 (1 + cos(pi s/4)).
    task = [1e-3 * f for f in (1.0, 0.8535533906, 0.5, 0.1464466094)]
    assert spy.lrs == pytest.approx([*task, *task])


@pytest.mark.parametrize("strategy", ["sequential", "mofo"])
def test_the_optimizer_lives_across_tasks_unless_reset(tiny, strategy):
    for reset, steps in ((False, 6.0), (True, 3.0)):
        model = copy.deepcopy(tiny)
        loop = build(model, f"optimizer.reset={reset}", f"strategy={strategy}")
        learn(loop, stream(10))
        weight = model.module.model.layers[0].mlp.up_proj.weight
        assert float(loop.optimizer.state[weight]["step"]) == steps


@pytest.mark.parametrize("strategy", ["sequential", "mofo"])
def test_same_seed_same_bits(tiny, strategy):
    runs = []
    for seed in (1, 1, 2):
        model = copy.deepcopy(tiny)
        learn(build(model, f"seed={seed}", f"strategy={strategy}"), stream(10))
        runs.append(torch.cat([p.detach().flatten() for p in model.module.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_mofo_moves_its_share_of_every_filtered_tensor(tiny):
    before = {n: p.detach().clone() for n, p in tiny.module.named_parameters()}
    learn(build(tiny, "strategy=mofo", "mofo.update_fraction=0.05"), list(stream(4))[:1])
    for name, parameter in tiny.module.named_parameters():
        moved = (parameter != before[name]).sum().item()
        if "norm" in name:
            assert moved > 0.5 * parameter.numel()
        else:
            # An entry chosen may round back to where it was; none may move that was not chosen.
            most = -(-parameter.numel() // 20)
            assert 0.9 * most <= moved <= most


def test_mofo_filters_norms_too_if_asked(tiny):
    before = {n: p.detach().clone() for n, p in tiny.module.named_parameters()}
    learn(build(tiny, "strategy=mofo", "mofo.filter_all=true"), list(stream(4))[:1])
    for name, parameter in tiny.module.named_parameters():
        assert (parameter != before[name]).sum() <= -(-parameter.numel() // 20)


def test_a_non_finite_gradient_stops_before_anything_changes(tiny):
    class Poison(Strategy):
        name = "poison"

        def on_gradients(self, loop):
            if loop.step == 1:
                loop.model.model.layers[1].mlp.up_proj.weight.grad[0, 0] = float("nan")
                self.before = [p.detach().clone() for p in loop.model.parameters()]

    poison = Poison()
    with pytest.raises(TrainingError, match=r"FOMC, step 2 of 3.*layers\.1\.mlp\.up_proj\.weight"):
        learn(build(tiny, "training.max_skipped_steps=0", strategies=[poison]), stream(10))
    for parameter, before in zip(tiny.module.parameters(), poison.before, strict=True):
        assert torch.equal(parameter, before)


def test_gradients_are_clipped_to_the_norm(tiny):
    class Norm(Strategy):
        name = "norm"
        norms: list[float] = []  # noqa: RUF012

        def after_step(self, loop):
            grads = [p.grad for p in loop.model.parameters()]
            self.norms.append(torch.nn.utils.get_total_norm(grads).item())

    learn(build(tiny, "optimizer.max_grad_norm=0.01", strategies=[Norm()]), list(stream(4))[:1])
    assert Norm.norms == pytest.approx([0.01], rel=1e-3)


def test_gradient_checkpointing_changes_nothing(tiny):
    runs = []
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny)
        if checkpointing:
            model.module.gradient_checkpointing_enable({"use_reentrant": False})
        spy = Spy()
        learn(build(model, strategies=[spy]), list(stream(10))[:1])
        runs.append(spy.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


def test_bfloat16_computes_on_float32_weights(tiny):
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(tiny)
        model = type(model)(model.module, model.tokenizer, model.device, dtype)
        spy = Spy()
        learn(build(model, strategies=[spy]), list(stream(10))[:1])
        losses[dtype] = spy.losses
        assert all(p.dtype == torch.float32 for p in model.module.parameters())
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.05)
    assert losses[torch.bfloat16] != losses[torch.float32]


def test_avalanche_plugins_see_every_callback(tiny):
    from avalanche.core import SupervisedPlugin

    class Counter(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen = []

        def before_training_exp(self, strategy, **kwargs):
            self.seen.append("exp")

        def before_training_epoch(self, strategy, **kwargs):
            self.seen.append("epoch")

        def after_forward(self, strategy, **kwargs):
            assert strategy.mb_output.shape[0] == strategy.mb_x.shape[0]
            self.seen.append("forward")

        def after_training_iteration(self, strategy, **kwargs):
            self.seen.append("step")

    counter = Counter()
    loop = build(tiny, "training.micro_batch_size=2", "tasks.epochs=2", plugins=[counter])
    learn(loop, list(stream(4))[:1])
    assert counter.seen == ["exp", *["epoch", "forward", "forward", "step"] * 2]


def test_avalanches_loss_metric_is_the_steps_loss(tiny):
    from avalanche.evaluation.metrics import loss_metrics
    from avalanche.training.plugins import EvaluationPlugin

    spy = Spy()
    evaluator = EvaluationPlugin(loss_metrics(minibatch=True), loggers=[])
    loop = build(tiny, "training.micro_batch_size=1", strategies=[spy], evaluator=evaluator)
    learn(loop, list(stream(4))[:1])
    (metric,) = loop.evaluator.get_last_metrics().values()
    assert metric == pytest.approx(spy.losses[-1])


def test_warmup_is_a_share_of_the_tasks_steps(tiny):
    spy = Spy()
    warm = ["optimizer.warmup_ratio=0.5", "optimizer.schedule=constant"]
    learn(build(tiny, "tasks.epochs=2", *warm, strategies=[spy]), list(stream(8))[:1])
    assert spy.lrs == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])  # two of four steps


def test_grouping_by_length_pads_less(tiny):
    padding = []
    for grouped in (False, True):
        grouping = f"training.group_by_length={grouped}"
        loop = build(tiny, grouping, "training.packing=false", "tasks.only=[MeetingBank]")
        (experience,) = stream(32, ["MeetingBank"])
        learn(loop, [experience])
        batches = [part for batch in loop_batches(loop, experience) for part in batch]
        padding.append(sum(part.input_ids.numel() - part.tokens for part in batches))
    assert padding[1] < padding[0]


def loop_batches(loop, experience):
    loop.experience, loop.epoch = experience, 0
    return list(loop.batches())


def test_weights_broken_by_the_last_step_are_found(tiny):
    class Break(Strategy):
        name = "break"

        def after_step(self, loop):
            with torch.no_grad():
                loop.model.model.norm.weight[0] = float("inf")

    with pytest.raises(TrainingError, match=r"after its last step model\.norm\.weight"):
        learn(build(tiny, strategies=[Break()]), list(stream(4))[:1])


def test_every_strategy_decays_the_same_tensors(tiny):
    decayed = {}
    for strategy in ("sequential", "mofo"):
        loop = build(tiny, f"strategy={strategy}", "optimizer.weight_decay=0.1")
        names = {id(p): n for n, p in tiny.module.named_parameters()}
        decayed[strategy] = {
            names[id(p)]
            for group in loop.optimizer.param_groups
            for p in group["params"]
            if group["weight_decay"] > 0
        }
    assert decayed["sequential"] == decayed["mofo"]
    assert not any("norm" in name for name in decayed["mofo"])


def test_an_avalanche_plugin_can_stop_training(tiny):
    from avalanche.core import SupervisedPlugin

    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            strategy.stop_training()

    loop = learn(build(tiny, plugins=[Stop()]), list(stream(10))[:1])
    assert loop.global_step == 1


def test_a_stop_in_a_tasks_last_step_stops_no_other_task(tiny):
    from avalanche.core import SupervisedPlugin

    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            if strategy.global_step == 3:  # of ten examples in batches of four
                strategy.stop_training()

    loop = build(tiny, plugins=[Stop()])
    loop.train(list(stream(10)), eval_streams=[])
    assert loop.global_step == 6


def test_a_task_begins_after_one_that_was_interrupted(tiny):
    class Interrupt(Strategy):
        name = "interrupt"
        begun: list[str] = []  # noqa: RUF012

        def before_experience(self, loop):
            self.begun.append(loop.plan.task.name)

        def after_step(self, loop):
            if loop.plan.task.name == "FOMC":
                raise KeyboardInterrupt

    first, second = stream(10)
    loop = build(tiny, strategies=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        loop.train(first, eval_streams=[])
    loop.train(second, eval_streams=[])
    assert Interrupt.begun == ["FOMC", "NumGLUE-cm"]
