"""Packing: the same loss and gradient as one example at a time, without waste."""

import copy
import inspect
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import cl_mofo
from cl_mofo import attention
from cl_mofo.attention import within_documents
from cl_mofo.compat import repair_torchvision
from cl_mofo.data.batches import IGNORED, collate, epoch_order, pack, unsupervised
from cl_mofo.data.division import PASS, Way, cuts, micro_batches, packs
from cl_mofo.data.tokenise import Encoder, Example
from cl_mofo.discovery import registry
from cl_mofo.model import LanguageModel, summed_loss, supervised_logits
from cl_mofo.probe import way_of
from tests.ranks import on_ranks
from tests.small_run import At
from tests.test_loop import build, learn, stream

repair_torchvision()

SHAPE = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def model_of(kind, **more) -> LanguageModel:
    """Return a random model of an architecture, in float64."""
    names = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}}
    config = transformers.AutoConfig.for_model(kind, **names.get(kind, SHAPE), **TOKENS, **more)
    torch.manual_seed(1)
    module = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    return LanguageModel(module, None, torch.device("cpu"), torch.float32)


ARCHITECTURES = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 48},
    "qwen2": {"num_key_value_heads": 1, "intermediate_size": 48},
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
MODELS = {kind: model_of(kind, **more) for kind, more in ARCHITECTURES.items()}


def wanting(packing=True):
    return SimpleNamespace(
        training=SimpleNamespace(packing=packing), engine=SimpleNamespace(compile=False)
    )


def alone(module, examples):
    """Return loss and gradient, summed over labels, of one example and one label at a time."""
    module.zero_grad()
    total = 0.0
    for example in examples:
        ids = torch.tensor([example.ids])
        chances = module(input_ids=ids).logits[0].log_softmax(-1)
        places = range(max(1, len(example) - example.supervised), len(example))
        terms = [-chances[place - 1, example.ids[place]] for place in places]
        if terms:
            sum(terms).backward()
            total += sum(terms).item()
    return total, gradients(module)


def together(module, batches):
    module.zero_grad()
    total = 0.0
    for batch in batches:
        logits, labels = supervised_logits(module, batch)
        # In the model's own precision; summed_loss is float32's.
        loss = cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        loss.backward()
        total += loss.item()
    return total, gradients(module)


def gradients(module):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
    }


def check_same(ours, right, tolerance=1e-10):
    assert ours[0] == pytest.approx(right[0], rel=tolerance, abs=tolerance)
    for name, gradient in right[1].items():
        # To the largest of all: a key's bias has no gradient but rounding.
        scale = max(float(g.abs().max()) for g in right[1].values())
        assert float((ours[1][name] - gradient).abs().max()) <= tolerance * max(scale, 1.0), name


example_lists = st.lists(
    st.tuples(st.lists(st.integers(0, 96), min_size=1, max_size=12), st.integers(0, 12)).map(
        lambda drawn: Example(tuple(drawn[0]), min(drawn[1], len(drawn[0])))
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=15)
@pytest.mark.parametrize("kind", ARCHITECTURES)
@given(examples=example_lists, size=st.integers(1, 3))
def test_packed_examples_have_the_loss_and_gradient_of_each_alone(kind, examples, size):
    module = MODELS[kind].module
    right = alone(module, examples)
    parts = micro_batches(examples, size, 0, way=Way(packed=True))
    check_same(together(module, parts), right)
    if any(len(example) > 1 for example in examples):
        assert sum(part.supervised for part in parts) == sum(
            min(example.supervised, len(example) - 1) for example in examples
        )


@settings(deadline=None, max_examples=10)
@given(examples=example_lists, size=st.integers(1, 3), masked=st.booleans())
def test_padded_examples_have_it_too_without_a_mask(examples, size, masked):
    module = MODELS["llama"].module
    right = alone(module, examples)
    parts = micro_batches(examples, size, 5, way=Way(masked=masked))
    check_same(together(module, parts), right)


def drawn(lengths, supervised=3, vocabulary=90):
    generator = torch.Generator().manual_seed(3)
    return [
        Example(tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()), supervised)
        for n in lengths
    ]


def test_float32_and_the_embedded_model(tiny):
    examples = drawn((30, 4, 17, 8, 1, 2))
    right = alone(tiny.module, examples)
    check_same(together(tiny.module, [pack(examples)]), right, 1e-5)


def test_gradient_checkpointing_computes_again_within_the_same_documents():
    module = copy.deepcopy(MODELS["llama"].module)
    examples = drawn((9, 4, 7))
    right = alone(module, examples)
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module.train()
    with within_documents(module):
        check_same(together(module, [pack(examples)]), right)


def test_dropout_of_the_attention_is_taken():
    model = model_of("llama", num_key_value_heads=2, intermediate_size=48, attention_dropout=0.5)
    model.module.train()
    batch = pack(drawn((9, 6)))
    torch.manual_seed(0)
    first, second = (supervised_logits(model.module, batch)[0] for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(supervised_logits(model.module, batch)[0], first)
    assert not torch.allclose(first, second)


def test_the_head_computes_only_what_is_learned(tiny):
    examples = drawn((50, 20, 30))
    seen = []
    hook = tiny.module.lm_head.register_forward_hook(lambda *call: seen.append(call[2].shape))
    batch = pack(examples)
    logits, labels = supervised_logits(tiny.module, batch)
    hook.remove()
    assert [shape[:-1] for shape in seen] == [(1, 9)]
    assert labels.tolist() == [[i for e in examples for i in e.ids[-3:]]]
    assert summed_loss(logits, labels).ndim == 0


def test_nothing_to_learn_still_has_a_backward_pass(tiny):
    module = tiny.module
    loss, gradient = together(module, [pack(drawn((4, 1), supervised=0))])
    assert loss == 0.0
    assert all(not g.any() for g in gradient.values())


def test_the_models_own_attention_is_back_afterwards(tiny, tmp_path):
    before = tiny.module.config._attn_implementation
    with within_documents(tiny.module):
        assert tiny.module.config._attn_implementation == attention.NAME
    with pytest.raises(IndexError), within_documents(tiny.module):
        raise IndexError
    assert tiny.module.config._attn_implementation == before
    supervised_logits(tiny.module, pack(drawn((5, 3))))
    tiny.module.config.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


def test_a_rank_without_an_example_runs_an_empty_pass(tiny):
    for batch in (pack(drawn((4, 1))), pack(drawn((1,))), collate(drawn((4, 2)), 0)):
        empty = unsupervised(batch)
        assert (empty.documents is None) == (batch.documents is None)
        assert (empty.tokens, empty.supervised) == (0, 0)
        loss, gradient = together(tiny.module, [empty])
        assert loss == 0.0
        assert not any(g.any() for g in gradient.values())


# Which models can.


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_models_that_can(kind):
    model = replace(MODELS[kind], module=copy.deepcopy(MODELS[kind].module).float())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert way_of(model, wanting(), 64) == Way(packed=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert way_of(model, wanting(packing=False), 64) == Way(masked=False)


LFM2 = {
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "layer_types": ["conv", "full_attention"],
}


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        (
            "mistral",
            {"num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 8},
            "its sliding_window is 8, and an example may have 64 tokens",
        ),
        (
            "gemma2",
            {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8},
            "its attention takes softcap",
        ),
        ("bloom", {"n_head": 4, "n_layer": 2}, "its logits then differ"),
        ("mamba", {"state_size": 4}, "its logits then differ"),
        ("lfm2", LFM2, "one example then changes another's logits"),
    ],
)
def test_models_that_cannot_are_padded(kind, more, why):
    model = model_of(kind, **more)
    model = replace(model, module=model.module.float())
    way = way_of(model, wanting(), 64)
    assert not way.packed
    assert not way.masked
    assert why in way.refused
    if kind == "mistral":  # a window that no example exceeds hides nothing
        model.module.config.sliding_window = 64
        assert way_of(model, wanting(), 64).packed


def test_a_leak_is_found(tiny, monkeypatch):
    def leaking(module, query, key, value, *args, documents, **kwargs):
        whole = replace(documents, lengths=(sum(documents.lengths),))
        return right(module, query, key, value, *args, documents=whole, **kwargs)

    right = attention.document_attention
    monkeypatch.setattr(attention, "document_attention", leaking)
    assert "its logits then differ" in way_of(tiny, wanting(), 64).refused


def test_a_model_that_fails_is_padded(tiny, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("no such argument\nand more")

    monkeypatch.setattr(attention, "document_attention", broken)
    assert way_of(tiny, wanting(), 64).refused == "no such argument"


def each_alone(q, k, v, starts, ends, **options):
    """Attend within each document, in the form of torch's varlen_attn, which only a GPU has."""
    rows = []
    for begin, end in zip(starts.tolist(), ends.tolist()[1:], strict=False):
        part = (t[begin:end].transpose(0, 1) for t in (q, k, v))
        rows.append(torch.nn.functional.scaled_dot_product_attention(*part, **options))
    return torch.cat([row.transpose(0, 1) for row in rows])


# The ends of torch's signatures: 2.10, between (2.11's documentation is not at hand), from 2.12 on.
def varlen_2_10(q, k, v, starts, ends, longest, most, is_causal=False, return_aux=None):
    assert is_causal
    assert longest == most == 5
    assert q.shape[1] == k.shape[1] == v.shape[1]
    return each_alone(q, k, v, starts, ends, is_causal=True)


def varlen_between(
    q, k, v, starts, ends, longest, most, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert window_size == (-1, 0)
    assert q.shape[1] == k.shape[1] == v.shape[1]
    return each_alone(q, k, v, starts, ends, is_causal=True, scale=scale)


def varlen_2_12(
    q, k, v, starts, ends, longest, most, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert window_size == (-1, 0)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    return each_alone(q, k, v, starts, ends, is_causal=True, scale=scale, enable_gqa=enable_gqa)


def flash(monkeypatch, varlen, scaling):
    """Return what flash attention and what attention document by document make of the same."""
    found = varlen, frozenset(inspect.signature(varlen).parameters)
    monkeypatch.setattr(attention, "_varlen_attention", lambda: found)
    documents = pack(drawn((3, 5, 1))).documents
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 16, generator=generator) for heads in (4, 2, 2))
    right, _ = attention.document_attention(
        torch.nn.Module(), q, k, v, None, scaling=scaling, documents=documents
    )
    return attention._flash(q, k, v, documents, scaling, torch.bfloat16), right


@pytest.mark.parametrize("varlen", [varlen_2_10, varlen_between, varlen_2_12])
@pytest.mark.parametrize("scaling", [None, 0.25, 0.3])
def test_flash_attention_gets_what_it_asks_for(monkeypatch, varlen, scaling):
    found, right = flash(monkeypatch, varlen, scaling)
    if varlen is varlen_2_10 and scaling == 0.3:  # it knows 1/sqrt(16) and no other
        assert found is None
    else:
        assert found.shape == right.shape
        torch.testing.assert_close(found.float(), right, atol=3e-2, rtol=3e-2)


def test_a_flash_attention_that_knows_no_order_is_left_alone(monkeypatch):
    def unknown(q, k, v, starts, ends, longest, most, *, scale=None):
        raise AssertionError

    assert flash(monkeypatch, unknown, None)[0] is None


@pytest.mark.parametrize("autocast", [True, False])
def test_attention_in_half_precision_is_that_of_float32_on_a_cpu(autocast):
    documents = pack(drawn((40, 17, 1))).documents
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, heads, 58, 16, generator=generator).bfloat16() for heads in (4, 2, 2)]
    right, _ = attention.document_attention(
        torch.nn.Module(), *(t.float() for t in given), None, documents=documents
    )
    inputs = [t.float() for t in given] if autocast else given
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, _ = attention.document_attention(
            torch.nn.Module(), *inputs, None, documents=documents
        )
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, right.bfloat16())


@pytest.mark.parametrize(
    ("head", "capability", "taken"),
    [(64, (9, 0), True), (256, (8, 0), True), (20, (9, 0), False), (64, (7, 5), False)],
)
def test_flash_attention_is_for_some_heads_and_gpus(monkeypatch, head, capability, taken):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query = SimpleNamespace(shape=(1, 4, 9, head), is_cuda=True, device="cuda:0")
    assert attention._flash_takes(query, query) == taken


@pytest.mark.skipif(not attention._varlen_attention()[1], reason="this torch has no varlen_attn")
def test_torchs_own_flash_attention_takes_what_it_is_given():
    # On the meta device, which checks arguments and shapes and computes nothing.
    documents = pack(drawn((3, 5, 1))).to(torch.device("meta")).documents
    q, k, v = (torch.empty(1, heads, 9, 16, device="meta").requires_grad_() for heads in (4, 2, 2))
    found = attention._flash(q, k, v, documents, 0.25, torch.bfloat16)
    assert found.shape == (1, 9, 4, 16)
    found.sum().backward()
    assert [t.grad.shape for t in (q, k, v)] == [q.shape, k.shape, v.shape]
    assert attention._varlen_attention() is attention._varlen_attention()


# How a step is divided.

lengths_of_a_step = st.lists(st.integers(1, 300), min_size=1, max_size=64).map(
    lambda lengths: sorted(lengths, reverse=True)
)


@given(lengths=lengths_of_a_step, size=st.integers(1, 16), ranks=st.integers(1, 4))
def test_packs_hold_each_example_once_within_the_bound(lengths, size, ranks):
    divided = packs(lengths, size, ranks)
    assert sorted(i for group in divided for i in group) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in group) for group in divided]
    assert loads == sorted(loads, reverse=True)
    assert loads[0] <= size * lengths[0]
    assert len(divided) % ranks == 0 or len(divided) == len(lengths)
    fixed = -(-len(lengths) // size)  # as many as sorted chunks would make, to the ranks' multiple
    assert len(divided) <= -(-fixed // ranks) * ranks


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9).map(
        lambda lengths: sorted(lengths, reverse=True)
    ),
    size=st.integers(1, 5),
)
def test_cuts_cost_the_least_of_all_ways_to_cut(lengths, size):
    def cost(runs):
        return sum(lengths[run[0]] * len(run) + PASS for run in runs)

    def all_cuts(first):
        if first == len(lengths):
            yield []
        for end in range(first + 1, min(first + size, len(lengths)) + 1):
            for rest in all_cuts(end):
                yield [list(range(first, end)), *rest]

    assert cost(cuts(lengths, size)) == min(map(cost, all_cuts(0)))
    assert [i for run in cuts(lengths, size) for i in run] == list(range(len(lengths)))


def test_several_ranks_get_runs_of_one_size():
    assert cuts([9, 8, 3, 2, 1], 8, ranks=2) == [[0, 1, 2], [3, 4]]


def test_examples_whose_mean_counts_stay_together_as_drawn():
    examples = drawn((3, 9, 4, 8, 5))
    parts = micro_batches(examples, 2, 0, way=Way(packed=True), together=True)
    assert [part.documents.lengths for part in parts] == [(3, 9), (4, 8), (5,)]


def test_padded_examples_keep_their_number():
    parts = micro_batches(drawn((5, 5, 5, 3)), 2, 0, way=Way())
    assert [tuple(part.input_ids.shape) for part in parts] == [(2, 5), (2, 5)]
    assert [part.masked for part in parts] == [False, True]


def test_a_packed_batch_says_what_it_holds():
    batch = pack([Example((9, 5, 6, 2), 2), Example((7,), 1), Example((3, 2), 2)])
    assert batch.input_ids.tolist() == [[9, 5, 6, 2, 7, 3, 2]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 6, 2, IGNORED, IGNORED, 2]]
    assert batch.documents.positions.tolist() == [[0, 1, 2, 3, 0, 0, 1]]
    assert batch.documents.starts.tolist() == [0, 4, 5, 7]
    assert batch.documents.predicting.tolist() == [1, 2, 5]
    assert (batch.tokens, batch.supervised, batch.examples, batch.longest) == (7, 3, 3, 4)
    assert batch.to(torch.device("meta")).documents.predicting.is_meta


# In a run.

BATCH = 16
MOST = 1.05
"""What may be computed of what is there."""


def test_nothing_is_wasted_on_the_trace_mix(trace_500, tiny):
    tasks = [task for task in registry().tasks.values() if task.suite == "trace"]
    computed = dict.fromkeys(("real", "packed", "cut", "trace"), 0)
    for task in tasks:
        rows = json.loads((trace_500 / task.name / "train.json").read_text())[: 4 * BATCH]
        encoder = Encoder(tiny.tokenizer, task.prompt_tokens, task.answer_tokens)
        examples = [encoder.encode(row["prompt"], row["answer"]) for row in rows]
        for indices in epoch_order([len(e) for e in examples], BATCH, (0,)):
            step = [examples[i] for i in indices]
            computed["real"] += task.epochs * sum(map(len, step))
            computed["trace"] += task.epochs * collate(step, 0).input_ids.numel()
            for name, way in (("packed", Way(packed=True)), ("cut", Way(masked=False))):
                parts = micro_batches(step, 8, 0, way=way)
                computed[name] += task.epochs * sum(part.input_ids.numel() for part in parts)
                assert sum(part.tokens for part in parts) == sum(map(len, step))
    assert len(tasks) == 8
    assert computed["packed"] == computed["real"]
    assert computed["cut"] <= MOST * computed["real"]
    assert computed["trace"] > 1.4 * computed["real"]


@pytest.mark.parametrize("loss", ["tokens", "micro_batches"])
def test_a_packed_step_is_the_padded_one(tiny, loss):
    weights, wasted = [], []
    for packing in (True, False):
        model = replace(tiny, module=copy.deepcopy(tiny.module))
        loop = build(model, f"training.packing={packing}", f"training.loss={loss}")
        learn(loop, stream(8, ["FOMC"]))
        weights.append({name: p.detach() for name, p in model.module.named_parameters()})
        wasted.append(loop.step_positions - loop.step_tokens)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=2e-5, rtol=0)
    assert wasted[0] == 0 < wasted[1]


def test_a_run_says_that_it_pads(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "_CHANGES_SCORES", ("position_ids",))
    observer = At()
    cl_mofo.run(small_recipe, out=tmp_path / "run", observer=observer)
    told = "examples are padded, as they cannot be packed: its attention takes position_ids"
    assert observer.warnings == [told]
    assert told in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.slow
def test_two_ranks_pack_to_the_same_weights(tmp_path):
    for rank in on_ranks("tests.packing_cases:as_alone", 2, tmp_path, seconds=240):
        assert rank.keys() == {"FSDP2", "ZeRO-2", "ZeRO-3"}
        for found in rank.values():
            assert found["steps"] == 3
            assert found["waste"] == 0
            assert found["apart"] < 2e-5 < 1e-4 < found["moved"]
