"""HFT: which half is drawn, that the frozen half stands still, and that nothing stays frozen."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch

from cl_mofo.discovery import registry
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.strategies.hft import HFT, blocks, draw
from cl_mofo.strategy import Strategy, compose
from tests.test_loop import build, learn, stream

LLAMA_LAYER = [
    *(f"self_attn.{m}_proj.weight" for m in "qkvo"),
    *(f"mlp.{m}_proj.weight" for m in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
]
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def llama(layers):
    return OUTSIDE + [f"model.layers.{i}.{name}" for i in range(layers) for name in LLAMA_LAYER]


def frozen_in(names, layer, part):
    return sum(f".layers.{layer}.{part}" in name for name in names)


@pytest.mark.parametrize("layers", [1, 2, 4, 5, 22])
def test_half_of_each_category_is_frozen(layers):
    found = blocks(llama(layers))
    for seed in range(20):
        frozen = draw(found, np.random.default_rng(seed))
        assert frozen.isdisjoint(OUTSIDE)
        for layer in range(layers):
            assert frozen_in(frozen, layer, "self_attn.") == 2
            assert frozen_in(frozen, layer, "mlp.") in (1, 2)
            norms = [n for n in frozen if f".layers.{layer}." in n and "norm" in n]
            assert len(norms) == 1
        mlp = sum(".mlp." in name for name in frozen)
        assert mlp in (3 * layers // 2, (3 * layers + 1) // 2)


def test_every_tensor_is_as_likely_frozen_as_not():
    found = blocks(llama(3))
    generator = np.random.default_rng(0)
    times = Counter(name for _ in range(4000) for name in draw(found, generator))
    assert times.keys() == set(llama(3)) - set(OUTSIDE)
    # 4000 draws of probability 1/2: a standard deviation of 32; five of them.
    assert all(abs(count - 2000) < 160 for count in times.values())


def test_half_of_the_entries_in_layers_are_frozen_on_average(tiny):
    sizes = {name: p.numel() for name, p in tiny.module.named_parameters()}
    found = blocks(sizes)
    inside = sum(size for name, size in sizes.items() if ".layers." in name)
    generator = np.random.default_rng(1)
    shares = [sum(sizes[n] for n in draw(found, generator)) / inside for _ in range(500)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.005)
    # All MLP matrices are of one size and all attention matrices too: any draw is half.
    assert min(shares) == pytest.approx(0.5, abs=1e-3)


def test_gpt2s_blocks_are_modules():
    layer = [
        f"transformer.h.7.{module}.{tensor}"
        for module in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for tensor in ("weight", "bias")
    ]
    outside = ["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.bias"]
    found = blocks([*outside, *layer])
    assert {category: [len(b) for b in layers.values()] for category, layers in found.items()} == {
        "norms": [2],
        "attn": [2],
        "mlp": [2],
    }
    frozen = draw(found, np.random.default_rng(0))
    # Half of six modules, each with its weight and its bias.
    assert len(frozen) == 6
    assert {n.rpartition(".")[0] + ".bias" for n in frozen} <= frozen


def test_a_layer_without_parts_is_halved_as_a_whole():
    names = [f"decoder.layers.0.{module}.weight" for module in ("fc1", "fc2", "in", "out")]
    found = blocks(names)
    assert list(found) == [""]
    assert len(draw(found, np.random.default_rng(0))) == 2


def test_adapters_of_one_matrix_are_one_block():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    adapters = LoraConfig(r=2, target_modules="all-linear", use_dora=True)
    module = get_peft_model(LlamaForCausalLM(config), adapters)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    found = blocks(trained)
    assert found.keys() == {"self_attn", "mlp"}
    assert all(len(block) == 3 for layers in found.values() for m in layers.values() for block in m)
    # The same matrices as without adapters: 4 and 3 to a layer.
    assert [len(m) for layers in found.values() for m in layers.values()] == [4, 4, 3, 3]


class Watch(Strategy):
    """Looks at each step from within and after it."""

    name = "watch"
    phases = frozenset({"end"})

    def __init__(self):
        super().__init__()
        self.steps, self.norms = [], []

    def before_step(self, loop):
        self.frozen = {n for n, p in loop.engine.trainable.items() if not p.requires_grad}
        self.before = snapshot(loop)

    def on_gradients(self, loop):
        assert self.frozen == {n for n, p in loop.engine.trainable.items() if p.grad is None}
        grads = [p.grad.flatten() for p in loop.engine.trainable.values() if p.grad is not None]
        self.norms.append(torch.cat(grads).norm().item())

    def after_step(self, loop):
        assert all(p.requires_grad for p in loop.engine.trainable.values())
        self.steps.append((self.frozen, self.before, snapshot(loop), dict(loop.figures)))
        assert loop.grad_norm == pytest.approx(self.norms[-1], rel=1e-4)


def snapshot(loop):
    """Each trained tensor's value and its optimizer state."""
    return {
        name: [p.detach().clone(), *tensors(loop.optimizer.state.get(p, {}))]
        for name, p in loop.engine.trainable.items()
    }


def tensors(state):
    return [state[key].clone() for key in sorted(state) if isinstance(state[key], torch.Tensor)]


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def run(language_model, *assignments, experiences=None, extra=()):
    """Learn with hft, and whatever base optimizer `strategy` names, and watch."""
    loop = build(language_model, *assignments, strategies=[])
    names = loop.recipe.strategy.split("+")
    known = registry()
    watch = Watch()
    given = [known.strategy(n)(loop.recipe.strategies[n]) for n in names]
    strategies = compose([*given, watch, *extra])
    loop = build(language_model, *assignments, strategies=strategies)
    return learn(loop, experiences or list(stream(10))[:1]), watch


@pytest.mark.parametrize("strategy", ["hft", "hft+mofo"])
@pytest.mark.parametrize("micro", [2, 4])
def test_the_frozen_half_stands_still_with_its_moments(tiny, strategy, micro):
    more = ["optimizer.weight_decay=0.1", "optimizer.max_grad_norm=0.05", "tasks.epochs=2"]
    _, watch = run(tiny, f"strategy={strategy}", f"training.micro_batch_size={micro}", *more)
    assert len(watch.steps) == 6
    for frozen, before, after, figures in watch.steps:
        assert frozen
        still = {name for name in before if equal(before[name], after[name])}
        assert still == frozen
        moving = sum(after[n][0].numel() for n in after if n not in frozen)
        share = moving / sum(value[0].numel() for value in after.values())
        assert figures["hft.moving"] == pytest.approx(share)
    assert len({frozenset(frozen) for frozen, *_ in watch.steps}) == 6
    # Moments exist by now, so that "unchanged" was not only "absent".
    frozen, before, *_ = watch.steps[-1]
    assert sum(len(before[name]) >= 3 for name in frozen) > len(frozen) / 2


def test_one_draw_can_last_a_whole_task(tiny):
    _, watch = run(tiny, "strategy=hft", "hft.redraw=task", experiences=stream(10))
    drawn = [frozenset(frozen) for frozen, *_ in watch.steps]
    assert drawn == [drawn[0]] * 3 + [drawn[3]] * 3
    assert drawn[0] != drawn[3]


def test_another_seed_draws_another_half(tiny):
    drawn = []
    for seed in (1, 1, 2):
        _, watch = run(copy.deepcopy(tiny), "strategy=hft", f"seed={seed}")
        drawn.append([frozen for frozen, *_ in watch.steps])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_the_moving_half_gets_the_gradient_it_would_have_had_alone(tiny):
    gradients = []

    class Keep(Strategy):
        name = "keep"

        def on_gradients(self, loop):
            grads = {n: p.grad for n, p in loop.engine.trainable.items()}
            gradients.append({n: grad.clone() for n, grad in grads.items() if grad is not None})

    for strategies in ([HFT(), Keep()], [Keep()]):
        learn(build(copy.deepcopy(tiny), strategies=strategies), list(stream(4))[:1])
    half, whole = gradients
    assert half.keys() < whole.keys()
    for name, gradient in half.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-7)


def test_a_step_that_fails_leaves_nothing_frozen(tiny):
    class Break(Strategy):
        name = "break"

        def on_gradients(self, loop):
            assert not all(p.requires_grad for p in loop.model.parameters())
            next(p for p in loop.engine.trainable.values() if p.grad is not None).grad[0] = float(
                "inf"
            )

    with pytest.raises(TrainingError, match="not finite"):
        learn(build(tiny, strategies=[HFT(), Break()]), list(stream(4))[:1])
    assert all(p.requires_grad for p in tiny.module.parameters())


def test_a_model_of_one_block_cannot_be_halved(tiny):
    for name, parameter in tiny.module.named_parameters():
        parameter.requires_grad_(name.endswith("layers.0.self_attn.q_proj.weight"))
    with pytest.raises(UserError, match=r"hft: only 1 tensors.*q_proj"):
        learn(build(tiny, "tasks.epochs=8", strategies=[HFT()]), list(stream(4))[:1])
