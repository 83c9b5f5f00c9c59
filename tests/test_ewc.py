"""EWC: two tensors stand for all tasks, Avalanche's plugin agrees, and its hooks act as said."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import tensors_benchmark
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin
from hypothesis import given
from hypothesis import strategies as st

from cl_mofo.checkpoint import load_state, save_state
from cl_mofo.data.batches import IGNORED
from cl_mofo.engine import SingleEngine
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.services import Services
from cl_mofo.strategies.ewc import EWC, accumulate, penalty_gradient, sampled_labels
from cl_mofo.strategy import Strategy
from tests.test_loop import build, learn, stream

grid = st.integers(-64, 64).map(lambda i: i / 64)
information = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
tasks = st.lists(st.tuples(information, grid), min_size=1, max_size=8)


def consolidated(pairs, decay=1.0, dtype=torch.float64):
    """The two tensors after tasks of given Fisher information and weights, one entry each."""
    fisher, anchor = torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    for new, theta in pairs:
        new, theta = torch.tensor([new], dtype=dtype), torch.tensor([theta], dtype=dtype)
        fisher, anchor = accumulate(fisher, anchor, new, theta, decay)
    return fisher, anchor


@given(tasks, grid, st.sampled_from([1.0, 0.9, 0.0]), st.floats(0, 1e6))
def test_two_tensors_are_the_sum_over_all_tasks(pairs, theta, decay, strength):
    fisher, anchor = consolidated(pairs, decay)
    weights = [decay ** (len(pairs) - 1 - k) * new for k, (new, _) in enumerate(pairs)]
    explicit = [w * (theta - at) for w, (_, at) in zip(weights, pairs, strict=True)]
    ours = penalty_gradient(torch.tensor([theta], dtype=torch.float64), fisher, anchor, strength)
    # Relative to what is added up: the terms themselves may cancel.
    scale = sum(w * (abs(theta) + abs(at)) for w, (_, at) in zip(weights, pairs, strict=True))
    assert abs(ours.item() - strength * math.fsum(explicit)) <= 1e-10 * strength * scale


def test_without_information_the_anchor_is_where_the_weights_were():
    fisher, anchor = consolidated([(0.0, 0.25), (0.0, 0.5)])
    assert (fisher.item(), anchor.item()) == (0.0, 0.5)
    # The first task that has some is the only one that counts.
    assert consolidated([(0.0, 0.25), (3.0, 0.5), (0.0, 7.0)])[1].item() == 0.5


def test_weights_that_hardly_move_are_held_exactly_where_a_difference_of_sums_cancels():
    # At a learning rate of 1e-6 a float32 weight moves by a few of its spacings, 6e-8 to 1.2e-7.
    generator = torch.Generator().manual_seed(0)
    at = 0.5 + torch.rand(1000, generator=generator)
    informations = [torch.rand(1000, generator=generator) for _ in range(8)]
    theta = at + 1e-6
    fisher, anchor = torch.zeros_like(at), torch.zeros_like(at)
    total, weighted = torch.zeros_like(at), torch.zeros_like(at)
    for information in informations:
        fisher, anchor = accumulate(fisher, anchor, information, at)
        total, weighted = total + information, weighted + information * at
    exact = sum(i.double() for i in informations) * (theta.double() - at.double())
    ours = penalty_gradient(theta, fisher, anchor, 1.0)
    assert ((ours - exact) / exact).abs().max() < 1e-5
    assert ((total * theta - weighted - exact) / exact).abs().max() > 0.2


def test_labels_are_drawn_by_inversion():
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().expand(6, 3)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53], dtype=torch.float64)
    assert sampled_labels(logits, uniform).tolist() == [0, 0, 1, 1, 2, 2]


class Rows:
    """One row for a plain classifier, in place of a micro-batch."""

    def __init__(self, inputs, label):
        self.inputs, self.label = inputs[None], label[None]

    def to(self, device):
        return self


class Plain(Services):
    """What EWC needs of a loop, over a plain classifier and rows of (input, class)."""

    def __init__(self, model, rows):
        self.model, self.examples = model, rows
        self.optimizer = torch.optim.SGD(model.parameters())
        self.engine = SingleEngine()
        self.engine.prepare(SimpleNamespace(module=model), lambda named: self.optimizer)
        self.recipe, self.task_index = SimpleNamespace(seed=1), 0
        self.device, self.figures = torch.device("cpu"), {}

    def micro_batches(self, examples):
        return [Rows(*example) for example in examples]

    def replace_gradients(self, batch):
        self.optimizer.zero_grad()
        sum(F.cross_entropy(self.model(row.inputs), row.label) for row in batch).backward()


def test_a_logistic_model_of_one_weight_by_hand():
    class Logistic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            return torch.cat([torch.zeros_like(x), self.theta * x], dim=1)

    model = Logistic()
    rows = [(torch.tensor([x], dtype=torch.float64), torch.tensor(y)) for x, y in ((2, 1), (4, 0))]
    loop, ewc = Plain(model, rows), EWC(EWC.Config(strength=3.0))
    ewc.after_experience(loop)
    # d loss / d theta = (p - y) x with p = 1/2 at theta = 0: -1 and 2, squared 1 and 4.
    assert ewc.fisher["theta"].item() == 2.5
    assert ewc.record() == {"fisher_examples": 2, "fisher_trace": 2.5}
    model.theta.data.fill_(0.2)
    model.theta.grad = torch.tensor(0.5, dtype=torch.float64)
    ewc.on_gradients(loop)
    assert model.theta.grad.item() == pytest.approx(0.5 + 3 * 2.5 * 0.2)
    assert loop.figures["ewc.ratio"] == pytest.approx(1.5 / 0.5)


@pytest.fixture
def _doubles():
    """Avalanche makes its tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_doubles")
def test_avalanches_plugin_holds_back_alike():
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    data = [
        (
            torch.randn(12, 4, generator=generator),
            torch.randint(3, (12,), generator=generator),
        )
        for _ in range(3)
    ]
    strength = 8.0  # Avalanche's penalty has no 1/2
    theirs = EWCPlugin(strength / 2, mode="separate")
    naive = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=1,
        plugins=[theirs],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    ours = EWC(EWC.Config(strength=strength))
    benchmark = tensors_benchmark(data, data, task_labels=[0, 0, 0])
    for experience, (inputs, labels) in zip(benchmark.train_stream, data, strict=True):
        naive.train(experience)
        ours.after_experience(Plain(network, list(zip(inputs, labels, strict=True))))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    network.zero_grad()
    naive.loss = torch.zeros(())
    theirs.before_backward(naive)
    naive.loss.backward()
    wanted = [parameter.grad.clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ours.on_gradients(Plain(network, []))
    for parameter, gradient in zip(network.parameters(), wanted, strict=True):
        assert gradient.abs().max() > 0.01
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)


def ewc_loop(language_model, *settings, others=()):
    """A loop whose strategies are EWC with these settings, and others around it."""
    assignments = [f"ewc.{setting}" for setting in settings]
    loop = build(language_model, "strategy=ewc", *assignments)
    if others:
        before, after = others
        strategies = [before, loop.strategies[0], after]
        loop = build(language_model, "strategy=ewc", *assignments, strategies=strategies)
    return loop, next(s for s in loop.strategies if s.name == "ewc")


def test_fisher_information_is_the_mean_of_each_examples_squared_gradient(tiny):
    loop, ewc = ewc_loop(tiny)
    for layer in tiny.module.model.layers:
        layer.self_attn.attention_dropout = 0.5  # must be off in the pass
    learn(loop, list(stream(6))[:1])
    # The slow way: one example at a time, full logits, no padding.
    tiny.module.eval()
    slow = {name: torch.zeros_like(p) for name, p in loop.engine.trainable.items()}
    for example in loop.examples:
        logits = tiny.module(torch.tensor([example.ids])).logits[0]
        start = len(example) - example.supervised
        loss = F.cross_entropy(logits[start - 1 : -1], torch.tensor(example.ids[start:]))
        gradients = torch.autograd.grad(loss, list(loop.engine.trainable.values()))
        for squares, gradient in zip(slow.values(), gradients, strict=True):
            squares += gradient**2 / len(loop.examples)
    for name, squares in slow.items():
        assert ewc.fisher[name].dtype == torch.float32
        torch.testing.assert_close(ewc.fisher[name], squares, rtol=1e-3, atol=1e-5 * squares.max())
        assert torch.equal(ewc.anchor[name], loop.engine.trainable[name])
    assert ewc.record()["fisher_examples"] == 6
    assert ewc.record()["fisher_trace"] == pytest.approx(
        sum(s.sum().item() for s in slow.values()), rel=1e-4
    )


def passes(language_model, *settings, seed=1):
    """The batches and losses of a Fisher pass."""
    loop, ewc = ewc_loop(copy.deepcopy(language_model), *settings)
    loop.recipe = loop.recipe.model_copy(update={"seed": seed})
    loop.examples = loop.encoded(list(stream(16)[0].dataset), loop.plan)
    seen = []

    def replace_gradients(batch, replace=loop.replace_gradients):
        seen.append((batch[0], replace(batch).item()))

    loop.replace_gradients = replace_gradients
    ewc.after_experience(loop)
    return seen


def test_the_pass_draws_rows_without_replacement_by_the_seed(tiny):
    def rows(seed):
        return [tuple(b.input_ids[0].tolist()) for b, _ in passes(tiny, *few, seed=seed)]

    few = ("fisher_examples=5",)
    assert len(set(rows(1))) == 5
    assert rows(1) == rows(1)
    assert set(rows(1)) != set(rows(2))


def test_labels_of_the_models_follow_its_distribution(tiny):
    seen = passes(tiny, "labels=model")
    drawn, expected, spread, changed = 0.0, 0.0, 0.0, 0
    for batch, loss in seen:
        with torch.no_grad():
            logits = tiny.module(batch.input_ids).logits[0, batch.first - 1 : -1]
        log_p = logits.log_softmax(-1)
        drawn += loss * batch.supervised
        expected += -(log_p.exp() * log_p).sum().item()
        spread += (
            ((log_p.exp() * log_p**2).sum(-1) - (log_p.exp() * log_p).sum(-1) ** 2).sum().item()
        )
        changed += (batch.labels != batch.input_ids)[0, batch.first :].sum().item()
        assert (batch.labels[0, : batch.first] == IGNORED).all()
    # The mean surprise of what a model draws is its entropy: within three standard errors.
    assert abs(drawn - expected) < 3 * math.sqrt(spread)
    assert changed > len(seen)


class Around(Strategy):
    """Keeps the gradients it sees; as the first one it also freezes a tensor, as HFT does."""

    def __init__(self, name, frozen=None):
        super().__init__()
        self.name, self.frozen, self.gradients, self.weights = name, frozen, [], []
        self.phases = frozenset({"update"} if name == "before" else {"projection"})

    def before_step(self, loop):
        if self.frozen:
            loop.freeze([self.frozen])

    def on_gradients(self, loop):
        self.gradients.append({n: g.clone() for n, g in loop.gradients().items()})
        self.weights.append({n: p.detach().clone() for n, p in loop.engine.trainable.items()})


FROZEN = "model.layers.1.mlp.up_proj.weight"


def test_the_penalty_is_added_once_a_step_to_what_the_step_may_move(tiny):
    before, after = Around("before", FROZEN), Around("after")
    loop, ewc = ewc_loop(tiny, "strength=50", others=(before, after))
    loop.recipe = loop.recipe.model_copy(
        update={"training": loop.recipe.training.model_copy(update={"micro_batch_size": 2})}
    )
    first, second = stream(10)
    learn(loop, [first])
    fisher, anchor = dict(ewc.fisher), dict(ewc.anchor)
    assert fisher[FROZEN].min() >= 0
    assert fisher[FROZEN].max() > 0
    steps = loop.global_step
    loop.train(second, eval_streams=[])
    for step in range(steps, len(after.gradients)):
        theta = after.weights[step]
        assert FROZEN not in after.gradients[step]
        for name, gradient in after.gradients[step].items():
            penalty = 50 * fisher[name] * (theta[name] - anchor[name])
            torch.testing.assert_close(gradient, before.gradients[step][name] + penalty)
    norm = torch.nn.utils.get_total_norm
    names = before.gradients[-1]
    penalties = [50 * fisher[n] * (theta[n] - anchor[n]) for n in names]
    ratio = norm(penalties) / norm(list(names.values()))
    assert ratio > 0
    assert loop.figures["ewc.ratio"] == pytest.approx(ratio.item(), rel=1e-4)


def test_the_first_task_is_learned_as_without_it(tiny):
    loop, _ = ewc_loop(copy.deepcopy(tiny))
    plain = build(copy.deepcopy(tiny), "strategy=sequential")
    for each in (loop, plain):
        learn(each, list(stream(6))[:1])
    assert "ewc.ratio" not in loop.figures
    for ours, theirs in zip(loop.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_more_strength_keeps_the_weights_nearer(tiny):
    distances = []
    for strength in ("0", "1e3", "1e6"):
        loop, ewc = ewc_loop(copy.deepcopy(tiny), f"strength={strength}", "fisher_examples=4")
        first, second = stream(10)
        learn(loop, [first])
        fisher, anchor = dict(ewc.fisher), dict(ewc.anchor)
        learn(loop, [second])
        distances.append(
            sum(
                (fisher[n] * (p - anchor[n]) ** 2).sum().item()
                for n, p in loop.engine.trainable.items()
            )
        )
    assert distances[2] < 0.9 * distances[1] < 0.8 * distances[0]


def test_traces_variant_gathers_the_squares_of_the_steps(tiny):
    before, after = Around("before", FROZEN), Around("after")
    loop, ewc = ewc_loop(tiny, "variant=trace", "strength=400", others=(before, after))
    first, second = stream(10)
    learn(loop, [first])
    before.frozen = None
    learn(loop, [second])
    # Three steps an epoch: each square counts a third, in both tasks.
    assert len(after.gradients) == 6
    for name, parameter in loop.engine.trainable.items():
        squares = [g[name] ** 2 / 3 for g in after.gradients if name in g]
        torch.testing.assert_close(ewc.fisher[name], sum(squares))
        assert torch.equal(ewc.anchor[name], parameter)
        # In the fifth step: the squares of the first four, and the first task's end as anchor,
        # which a tensor that never moved in that task has not.
        held = 0 * squares[0] if name == FROZEN else sum(squares[:4])
        moved = after.weights[4][name] - after.weights[3][name]
        penalty = after.gradients[4][name] - before.gradients[4][name]
        torch.testing.assert_close(penalty, 400 * held * moved, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "step"),
    [(("variant=trace",), 2), (("variant=trace",), 5), (("labels=model", "decay=0.5"), 5)],
)
def test_it_goes_on_to_the_bit_with_other_settings_too(tiny, tmp_path, settings, step):
    class Save(Strategy):
        name = "save"

        def before_step(self, loop):
            if loop.global_step == step and loop.resumed is None and not any(tmp_path.iterdir()):
                save_state(tmp_path, loop.state_dict())

    def fresh():
        return ewc_loop(copy.deepcopy(tiny), *settings, others=(Around("before"), Save()))[0]

    whole = learn(fresh(), stream(10))
    loop = fresh()
    loop.load_state_dict(load_state(tmp_path))
    learn(loop, list(stream(10))[loop.resumed.experience :])
    assert loop.global_step == whole.global_step == 6
    for ours, theirs in zip(loop.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_stays_on_the_host_is_not_loaded_by_way_of_the_device(tiny):
    whole = learn(ewc_loop(copy.deepcopy(tiny), "offload=true")[0], stream(10))
    loop, again = ewc_loop(copy.deepcopy(tiny), "offload=true")
    loop.device = torch.device("meta")  # from which nothing comes back
    loop.load_state_dict(whole.state_dict())
    (ewc,) = whole.strategies
    for name, fisher in ewc.fisher.items():
        assert torch.equal(again.fisher[name], fisher)
        assert torch.equal(again.anchor[name], ewc.anchor[name])


def test_a_fisher_pass_that_overflows_is_told(tiny):
    loop, ewc = ewc_loop(tiny)
    loop.examples = loop.encoded([{"prompt": "1 + 1", "answer": "2"}])

    def overflow(batch):
        for parameter in loop.engine.trainable.values():
            parameter.grad = torch.full_like(parameter, 1e30)

    loop.replace_gradients = overflow
    with pytest.raises(TrainingError, match=r"task FOMC: the Fisher information of ewc"):
        ewc.after_experience(loop)


@pytest.mark.parametrize("setting", ["decay=0.5", "labels=model", "fisher_examples=10"])
def test_settings_of_a_pass_that_is_not_made_are_refused(tiny, setting):
    key = setting.partition("=")[0]
    with pytest.raises(UserError, match=f"'trace' makes no Fisher pass; leave {key} out"):
        ewc_loop(tiny, "variant=trace", setting)


@pytest.mark.parametrize("setting", ["strength=-1", "decay=1.5", "fisher_examples=0"])
def test_values_out_of_range_are_refused(tiny, setting):
    with pytest.raises(UserError, match=f"ewc.{setting.partition('=')[0]}"):
        ewc_loop(tiny, setting)
