"""GEM and A-GEM: the projection against two other solvers and its own optimality conditions."""

from types import SimpleNamespace

import numpy as np
import pytest
import quadprog
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin, GEMPlugin
from avalanche.training.supervised import Naive
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from cl_mofo.engine import SingleEngine
from cl_mofo.episodic import combine, inner_products
from cl_mofo.services import Services
from cl_mofo.strategies import agem
from cl_mofo.strategies.gem import GEM, project, solve_dual


@st.composite
def cones(draw):
    """A gradient [n] and memory gradients [t, n]: small integers, so that zero, repeated, opposite
    and dependent ones are frequent, each row in a unit of its own."""
    t, n = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    entries = st.lists(st.integers(-3, 3), min_size=n, max_size=n)
    rows = [draw(entries) for _ in range(t)]
    units = [10.0 ** draw(st.integers(-4, 4)) for _ in range(t)]
    gradient = torch.tensor(draw(entries), dtype=torch.float64)
    return gradient, torch.tensor(rows, dtype=torch.float64) * torch.tensor(units)[:, None].double()


def test_a_gradient_opposed_to_its_only_memory_vanishes():
    # TRACE's quadratic program returns -2 here.
    assert project(torch.tensor([-1.0]), torch.tensor([[1.0]])) == 0
    # v* = 1 unconstrained; a margin of 1.5 steps 0.5 along the memory.
    assert project(torch.tensor([-1.0]), torch.tensor([[1.0]]), margin=1.5) == 0.5
    # (1 + ridge) v = 1.
    assert project(torch.tensor([-1.0]), torch.tensor([[1.0]]), ridge=1.0) == -0.5


def test_two_memories_of_which_one_is_enough():
    # By hand: g = (-1, 0) against (1, 0) gives 0; (1, 1)'s constraint then holds by itself, v = 0.
    memories = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    dots = memories @ torch.tensor([-1.0, 0.5], dtype=torch.float64)
    v = solve_dual((memories @ memories.T).numpy(), dots.numpy())
    np.testing.assert_allclose(v, [1.0, 0.0], atol=1e-12)


def test_memories_without_a_gradient_have_no_effect():
    # Six in two dimensions, three of them zero: rounding makes columns of 1e-16 out of those.
    rows = [[0, 0], [0, 0], [-1, 0], [0, 0], [1, 1], [-1, 0]]
    projected = project(torch.tensor([-1.0, 0.0]), torch.tensor(rows, dtype=torch.float32))
    torch.testing.assert_close(projected, torch.tensor([-0.5, 0.5]))  # along the edge of (1, 1)


@given(cones(), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 1e-3, 1.0]))
def test_the_projection_is_optimal_on_any_cone(cone, margin, ridge):
    gradient, memories = cone
    dots = memories @ gradient
    projected = project(gradient, memories, margin, ridge)
    if (dots >= 0).all():
        assert torch.equal(projected, gradient)
        return
    gram = memories @ memories.T
    v = torch.from_numpy(solve_dual(gram.numpy(), dots.numpy(), margin, ridge))
    torch.testing.assert_close(projected, gradient + memories.T @ v)
    # Karush, Kuhn and Tucker, each condition in the units of its memory.
    matrix = gram + ridge * torch.eye(len(v), dtype=torch.float64)
    units = matrix.diagonal().sqrt().clamp(min=1e-300)
    size = gradient.norm() + (units * v).norm()
    multipliers = (matrix @ v + dots) / units / size
    assert (v >= margin).all()
    assert (multipliers >= -1e-6).all()
    assert (multipliers * (v - margin) * units / size).abs().max() <= 1e-6
    if margin == ridge == 0:
        assert (memories @ projected / units / size >= -1e-6).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([0.0, 0.5]))
def test_quadprog_agrees_where_the_gram_matrix_is_definite(seed, t, margin):
    generator = torch.Generator().manual_seed(seed)
    memories = torch.randn(t, 20, generator=generator, dtype=torch.float64)
    dots = (memories @ torch.randn(20, generator=generator, dtype=torch.float64)).numpy()
    gram = (memories @ memories.T).numpy()
    expected = quadprog.solve_qp(gram, -dots, np.eye(t), np.full(t, margin))[0]
    np.testing.assert_allclose(solve_dual(gram, dots, margin), expected, atol=1e-7)


def split(flat, shapes):
    """Cut [..., n] into tensors by name, as `cl_mofo.episodic` takes them."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    return {f"tensor {i}": part for i, part in enumerate(flat.split(sizes, dim=-1))}


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
def test_in_chunks_by_tensor_it_is_the_same_projection(chunk):
    shapes = [(4, 5), (1,), (30,), (3, 2, 2)]
    generator = torch.Generator().manual_seed(3)
    memories = torch.randn(5, 63, generator=generator, dtype=torch.float64)
    flat = torch.randn(63, generator=generator) - 3 * memories[1].float()
    rows = split(memories, shapes)
    gradient = {
        name: part.reshape(shape).clone()
        for (name, part), shape in zip(split(flat, shapes).items(), shapes, strict=True)
    }
    products = inner_products({**rows, "not in this step": memories}, gradient, chunk)
    stacked = torch.cat([memories, flat.double()[None]])
    np.testing.assert_allclose(products, (stacked @ stacked.T).numpy(), rtol=1e-12)
    v = solve_dual(products[:-1, :-1], products[:-1, -1], 0.5, 0.0)
    combine(rows, gradient, np.append(v, 1.0), chunk)
    done = torch.cat([part.flatten() for part in gradient.values()])
    torch.testing.assert_close(done, project(flat, memories, 0.5))


@given(cones())
def test_agem_is_gem_with_one_memory_and_no_margin(cone):
    gradient, (reference, *_) = cone
    projected = agem.project(gradient, reference)
    torch.testing.assert_close(projected, project(gradient, reference[None]))
    size = float(gradient.norm() * reference.norm())
    assert projected @ reference >= -1e-12 * size
    if gradient @ reference >= 0:
        assert torch.equal(projected, gradient)


class View(Services):
    """What our strategy needs of a loop, over Avalanche's."""

    def __init__(self, avalanche):
        self.avalanche, self.device = avalanche, avalanche.device
        self.engine = SingleEngine()
        model = SimpleNamespace(module=avalanche.model)
        self.engine.prepare(model, lambda named: avalanche.optimizer)
        self.step, self.figures = 0, {}

    def micro_batches(self, patterns):
        return patterns

    def replace_gradients(self, patterns):
        self.avalanche.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.avalanche.model(patterns[0]), patterns[1]).backward()


class Ours(SupervisedPlugin):
    """Run our strategy beside Avalanche's plugin, before it, and leave the gradients untouched."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy = strategy

    def before_training_iteration(self, strategy, **kwargs):
        self.strategy.before_step(View(strategy))

    def after_backward(self, strategy, **kwargs):
        loop = View(strategy)
        self.before = {name: p.grad.clone() for name, p in loop.engine.trainable.items()}
        self.strategy.on_gradients(loop)
        self.projected = {name: p.grad.clone() for name, p in loop.engine.trainable.items()}
        for name, parameter in loop.engine.trainable.items():
            parameter.grad.copy_(self.before[name])


class Compare(SupervisedPlugin):
    """Hold Avalanche's projected gradient to ours, and hand its memories over."""

    def __init__(self, ours, theirs):
        super().__init__()
        self.ours, self.theirs, self.projected = ours, theirs, []

    def after_backward(self, strategy, **kwargs):
        for name, parameter in strategy.model.named_parameters():
            torch.testing.assert_close(
                self.ours.projected[name], parameter.grad, rtol=1e-5, atol=1e-5
            )
        changed = any((self.ours.before[n] != g).any() for n, g in self.ours.projected.items())
        self.projected.append(changed)

    def after_training_exp(self, strategy, **kwargs):
        last = strategy.clock.train_exp_counter
        patterns = (self.theirs.memory_x[last], self.theirs.memory_y[last])
        self.ours.strategy.rows = {}
        self.ours.strategy.memory.append(patterns)


@pytest.mark.filterwarnings("ignore:No loggers")
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_avalanches_plugin_projects_the_same(margin):
    torch.manual_seed(0)
    datasets = []
    for _ in range(3):
        labels = torch.randint(0, 3, (24,))
        data = TensorDataset(torch.randn(24, 4, dtype=torch.float64), labels)
        data.targets = labels.tolist()
        datasets.append(as_classification_dataset(data))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model = model.double()
    ours = Ours(GEM(GEM.Config(margin=margin, ridge=1e-3, dtype="float32")))
    theirs = GEMPlugin(5, margin)
    compare = Compare(ours, theirs)
    naive = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=4,
        plugins=[ours, theirs, compare],
        evaluator=EvaluationPlugin(),
    )
    for experience in benchmark_from_datasets(train=datasets).train_stream:
        naive.train(experience)
    # Six steps a task, the first task's without memories; both cases have occurred.
    assert len(compare.projected) == 18
    assert not any(compare.projected[:6])
    assert 3 < sum(compare.projected) < 12
