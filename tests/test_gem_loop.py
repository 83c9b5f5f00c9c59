"""GEM and A-GEM in the loop: which gradients they compute, when, and what they hold in memory."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cl_mofo.episodic import combine, inner_products
from cl_mofo.errors import TrainingError
from cl_mofo.strategies import agem
from cl_mofo.strategies.agem import AGEM
from cl_mofo.strategies.gem import GEM, project
from cl_mofo.strategy import Strategy
from tests.test_loop import build, learn, stream

THREE = ("FOMC", "NumGLUE-cm", "NumGLUE-ds")


class Around(Strategy):
    """Keep each step's gradients before and after a projection, and its weights and memories."""

    name = "around"
    phases = frozenset({"projection"})

    def __init__(self, inner):
        super().__init__(inner.config)
        self.inner, self.steps = inner, []

    def before_step(self, loop):
        self.inner.before_step(loop)

    def on_gradients(self, loop):
        given = {n: p.grad.clone() for n, p in loop.engine.trainable.items() if p.grad is not None}
        module = copy.deepcopy(loop.language_model.module)
        held = getattr(self.inner, "rows", {})
        rows = {name: row.clone() for name, row in held.items()}
        nbytes = sum(row.nbytes for row in held.values())
        self.inner.on_gradients(loop)
        left = {n: p.grad.clone() for n, p in loop.engine.trainable.items() if p.grad is not None}
        step = SimpleNamespace(given=given, left=left, rows=rows, module=module, nbytes=nbytes)
        step.figures, step.task, step.device = dict(loop.figures), loop.plan.task.name, loop.device
        self.steps.append(step)

    def after_experience(self, loop):
        self.inner.after_experience(loop)


def flat(gradient):
    return torch.cat([tensor.flatten() for tensor in gradient.values()])


def by_hand(module, examples):
    """The gradient of the mean loss over supervised tokens, one example at a time, unpadded."""
    module.zero_grad()
    loss, count = 0.0, 0
    for example in examples:
        logits = module(torch.tensor([example.ids])).logits[0]
        start = len(example) - example.supervised
        targets = torch.tensor(example.ids[start:])
        loss = loss + torch.nn.functional.cross_entropy(
            logits[start - 1 : -1], targets, reduction="sum"
        )
        count += example.supervised
    (loss / count).backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def around(tiny, inner, *assignments, train=8, tasks=THREE, extra=()):
    spy = Around(inner)
    lines = [f"tasks.only=[{','.join(tasks)}]", *assignments]
    loop = build(copy.deepcopy(tiny), *lines, strategies=[*extra, spy])
    learn(loop, stream(train, tasks))
    return loop, spy.steps


def test_each_step_is_projected_by_the_memories_gradients_at_its_weights(tiny):
    inner = GEM(GEM.Config(memory_examples=3, dtype="float32"))
    _, steps = around(tiny, inner, "optimizer.lr=3e-3")
    first, second, _ = inner.memory
    assert [step.task for step in steps] == [task for task in THREE for _ in range(2)]
    assert [step.figures for step in steps[:2]] == [{}, {}]
    assert [len(flat(step.rows)) if step.rows else 0 for step in steps[:2]] == [0, 0]
    for step in steps[2:]:
        known = [first, second][: THREE.index(step.task)]
        expected = [flat(by_hand(step.module, examples)) for examples in known]
        rows = torch.cat([step.rows[name] for name in step.given], dim=1)
        torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(flat(step.left), project(flat(step.given), rows, 0.5))
        dots = rows @ flat(step.given)
        assert step.figures["gem.violated"] == (dots < 0).sum()
        ratio = flat(step.left).norm() / flat(step.given).norm()
        assert step.figures["gem.norm_ratio"] == pytest.approx(ratio.item(), rel=1e-4)
        cosine = (dots / rows.norm(dim=1)).min() / flat(step.given).norm()
        assert step.figures["gem.least_cosine"] == pytest.approx(cosine.item(), abs=1e-5)
    violated = [step.figures["gem.violated"] for step in steps[2:]]
    assert max(violated) > 0, violated


def test_bfloat16_memories_hold_half_the_bytes_and_their_own_rounding(tiny):
    # Not stepping (lr 1e-30), both see the same weights, so the same gradients.
    steps = {}
    for dtype in ("float32", "bfloat16"):
        inner = GEM(GEM.Config(memory_examples=2, dtype=dtype))
        steps[dtype] = around(tiny, inner, "optimizer.lr=1e-30", train=4)[1][1:]
    for exact, rounded in zip(steps["float32"], steps["bfloat16"], strict=True):
        whole, short = flat(exact.rows), flat(rounded.rows).float()
        # Eight significant bits round to nearest: off by at most 2^-8 of the value.
        assert (short - whole).norm() <= 2**-8 * whole.norm()
        assert not torch.equal(short, whole)
    parameters = sum(p.numel() for p in tiny.module.parameters())
    assert [step.nbytes for step in steps["float32"]] == [4 * t * parameters for t in (1, 2)]
    assert [step.nbytes for step in steps["bfloat16"]] == [2 * t * parameters for t in (1, 2)]


class Freeze(Strategy):
    """Keep another half of the tensors from moving in every step."""

    name = "freeze"
    phases = frozenset({"update"})

    def before_step(self, loop):
        loop.freeze([n for i, n in enumerate(loop.engine.trainable) if i % 2 != loop.step % 2])


@pytest.mark.parametrize("refresh", [1, 2])
def test_only_what_a_step_moves_takes_part_in_it(tiny, refresh):
    config = GEM.Config(memory_examples=3, dtype="float32", margin=0.0, refresh=refresh)
    inner = GEM(config)
    lines = ["tasks.epochs=2", "optimizer.lr=3e-3"]
    _, steps = around(tiny, inner, *lines, tasks=THREE[:2], extra=[Freeze()])
    second = steps[4:]
    assert len(second[0].rows) == (19 if refresh == 1 else 38)  # what later steps use, too
    for i, step in enumerate(second):
        assert len(step.given) == 19  # half of 38 tensors
        assert {n for n, p in step.module.named_parameters() if p.requires_grad} == set(step.given)
        rows = torch.cat([step.rows[name] for name in step.given], dim=1)
        torch.testing.assert_close(flat(step.left), project(flat(step.given), rows))
        expected = flat(by_hand(step.module, inner.memory[0]))
        fresh = i % refresh == 0
        assert torch.allclose(rows, expected, rtol=1e-3, atol=1e-5) == fresh


def test_offloaded_memories_change_nothing(tiny):
    left = []
    for offload in (False, True):
        inner = GEM(GEM.Config(memory_examples=3, offload=offload))
        left.append([flat(step.left) for step in around(tiny, inner, tasks=THREE[:2])[1]])
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))


def test_a_memory_is_drawn_from_its_tasks_rows_by_the_seed(tiny):
    drawn = {}
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        inner = AGEM(AGEM.Config(memory_examples=5))
        loop, _ = around(tiny, inner, f"seed={seed}", train=8, tasks=THREE[:2])
        drawn[name] = inner.memory
        assert [len(set(examples)) for examples in drawn[name]] == [5, 5]
        assert set(drawn[name][1]) < set(loop.examples)
        assert not set(drawn[name][0]) & set(loop.examples)
    assert drawn["a"] == drawn["again"] != drawn["b"]


def test_a_memory_is_one_global_batch_unless_said_and_never_more_than_there_is(tiny):
    for setting, train, expected in ((None, 8, 4), (6, 8, 6), (6, 5, 5)):
        inner = GEM(GEM.Config(memory_examples=setting))
        around(tiny, inner, train=train, tasks=THREE[:1])
        assert inner.record() == {"memory_examples": [expected]}


def test_agem_projects_by_one_batch_of_all_memories(tiny):
    class Drawn(AGEM):
        batches = []  # noqa: RUF012

        def before_step(self, loop):
            whole = loop.micro_batches
            loop.micro_batches = lambda examples: self.batches.append(examples) or whole(examples)
            super().before_step(loop)
            del loop.micro_batches
            self.held = dict(self.reference)

    inner = Drawn(AGEM.Config(memory_examples=4, batch_examples=6))

    class Reference(Around):
        def on_gradients(self, loop):
            super().on_gradients(loop)
            self.steps[-1].reference = self.inner.held

    spy = Reference(inner)
    lines = [f"tasks.only=[{','.join(THREE)}]", "optimizer.lr=3e-3", "tasks.epochs=2"]
    learn(build(copy.deepcopy(tiny), *lines, strategies=[spy]), stream(8, THREE))
    steps = [step for step in spy.steps if step.task != THREE[0]]
    assert [len(set(batch)) for batch in inner.batches] == [4] * 4 + [6] * 4
    first, second = (set(examples) for examples in inner.memory[:2])
    for batch in inner.batches[4:]:
        assert set(batch) <= first | second
        assert set(batch) & first
        assert set(batch) & second
    assert len({tuple(sorted(e.ids for e in batch)) for batch in inner.batches[4:]}) > 1
    projected = []
    for step, batch in zip(steps, inner.batches, strict=True):
        reference = flat(step.reference)
        expected = flat(by_hand(step.module, batch))
        torch.testing.assert_close(reference, expected, rtol=1e-3, atol=1e-5)
        given, left = flat(step.given).double(), flat(step.left)
        torch.testing.assert_close(left, agem.project(given, reference.double()).float())
        cosine = torch.nn.functional.cosine_similarity(given, reference.double(), dim=0)
        assert step.figures["agem.cosine"] == pytest.approx(cosine.item(), abs=1e-6)
        projected.append(step.figures["agem.projected"])
        assert projected[-1] == (cosine < 0)
    assert set(projected) == {0.0, 1.0}


@pytest.mark.parametrize("strategy", [GEM, AGEM])
def test_a_memory_whose_gradient_is_broken_is_named_before_anything_changes(tiny, strategy):
    class Break(strategy):
        def before_step(self, loop):
            head = loop.model.lm_head
            hook = head.register_forward_hook(lambda module, given, out: out * float("nan"))
            super().before_step(loop)
            hook.remove()

    loop = build(copy.deepcopy(tiny), strategies=[Break()])
    with pytest.raises(
        TrainingError, match=rf"NumGLUE-cm, step 1 of 1.*{strategy.name}'s memories"
    ):
        learn(loop, stream(4))


def peak_bytes(act):
    """The most bytes that torch held at once of those it allocated meanwhile."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        act()
    events = profile.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in moves:
        held += change
        peak = max(peak, held)
    return peak


def test_a_projection_copies_nothing_of_the_models_size():
    entries, tasks, chunk = 2_000_000, 3, 2**16
    memories = {"weight": torch.randn(tasks, entries).bfloat16()}
    gradient = {"weight": torch.randn(entries)}
    scratch = 8 * chunk * (tasks + 1)
    ones = np.ones(tasks + 1)
    products = peak_bytes(lambda: inner_products(memories, gradient, chunk))
    combined = peak_bytes(lambda: combine(memories, gradient, ones, chunk))
    # The sums' few entries beside it; the combined chunk itself.
    assert scratch <= products <= scratch + 4096
    assert scratch + 8 * chunk <= combined <= scratch + 8 * chunk + 4096


def test_the_peak_of_a_run_is_as_documented(tiny):
    def peak(*strategies):
        lines = [f"tasks.only=[{','.join(THREE)}]", "training.micro_batch_size=1"]
        loop = build(copy.deepcopy(tiny), *lines, strategies=strategies)
        return peak_bytes(lambda: learn(loop, stream(4, THREE)))

    past = 2
    parameters = [p.numel() for p in tiny.module.parameters()]
    plain = peak()
    # The scratch is there when a forward pass's tensors are not: some of it may not show.
    beside = peak(GEM()) - plain - 2 * past * sum(parameters)
    assert 0 <= beside <= 8 * (past + 2) * max(parameters)
    beside = peak(AGEM()) - plain - 4 * sum(parameters)
    assert 0 <= beside <= 8 * 3 * max(parameters)
