"""The loop that generates answers, beside transformers' own and beside plain forward passes."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.tokenise import Encoder
from cl_mofo.evaluation import context, decoding
from cl_mofo.evaluation.backend import Question
from cl_mofo.evaluation.batching import batches
from cl_mofo.evaluation.decoding import Decoder, fits, sampled
from cl_mofo.evaluation.generate import answer
from cl_mofo.evaluation.library import Library
from cl_mofo.evaluation.losses import evaluating
from cl_mofo.model import LanguageModel

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
PLAIN = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, **HEADS),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, **HEADS),
    "a sliding window": lambda: transformers.MistralConfig(**SIZES, **HEADS, sliding_window=6),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
}
OTHER = {
    "a state space": lambda: transformers.MambaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4
    ),
    "prepared inputs": lambda: transformers.Phi3Config(**SIZES, **HEADS, pad_token_id=0),
    "no positions": lambda: transformers.BloomConfig(vocab_size=40, hidden_size=16, n_head=2),
}
BUDGET = 12


class Model(LanguageModel):
    """A model of random weights, in float64, whose tokens differ much."""

    def __init__(self, config):
        torch.manual_seed(1)
        module = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.data *= 8
        module.generation_config = transformers.GenerationConfig()
        super().__init__(module, None, torch.device("cpu"), torch.float32)


class Numbers:
    """A tokenizer whose texts are numbers between spaces."""

    bos_token_id = None

    def __init__(self, eos):
        self.eos_token_id = eos

    def __call__(self, texts, **kwargs):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    def decode(self, ids, **kwargs):
        return " ".join(map(str, ids))


def questions(**kwargs):
    rng = np.random.default_rng(5)
    lengths = sorted(rng.integers(2, 14, 9).tolist(), reverse=True)
    return [
        Question(
            rng.integers(0, 40, length).tolist(),
            rng.integers(0, 40, rng.integers(1, BUDGET)).tolist(),
            seed=i,
            **kwargs,
        )
        for i, length in enumerate(lengths)
    ]


def encoder_of(model, config):
    """An encoder whose end of sequence is a token that several answers come to, at other places."""
    endless = Encoder(Numbers(-1), 16, BUDGET - 1)
    with evaluating(model):
        found = [one.ids for one in Decoder(model, endless, config).generate(questions())]
    tokens = {token for ids in found for token in ids}
    ends = {t: {ids.index(t) for ids in found if t in ids} for t in tokens}
    eos = max(ends, key=lambda token: (len(ends[token]), token))
    assert len(ends[eos]) > 2
    return Encoder(Numbers(eos), 16, BUDGET - 1)


@pytest.fixture(scope="module", params=PLAIN)
def model(request):
    return Model(PLAIN[request.param]())


KINDS = (Decoder, Library)


@pytest.mark.parametrize("pass_tokens", [1, 20, context.WORTH_A_PASS])
def test_greedy_answers_are_transformers(model, monkeypatch, pass_tokens):
    monkeypatch.setattr(context, "WORTH_A_PASS", pass_tokens)
    config = EvaluationConfig()
    encoder = encoder_of(model, config)
    with evaluating(model):
        ours, theirs = (kind(model, encoder, config).generate(questions()) for kind in KINDS)
    assert [one.ids for one in ours] == [one.ids for one in theirs]
    assert len({len(one.ids) for one in ours}) > 2


@pytest.mark.parametrize("top_k", [None, 5])
def test_sampled_answers_are_transformers_given_the_same_draws(model, monkeypatch, top_k):
    config = EvaluationConfig(decoding="sample", temperature=1.5, top_k=top_k)
    encoder = encoder_of(model, config)
    asked = questions()
    draws = np.stack([np.random.default_rng(q.seed).random(BUDGET, np.float32) for q in asked])
    steps = iter(torch.from_numpy(draws.T.astype(np.float64)))

    def drawn(probabilities, num_samples):
        passed = probabilities.double().cumsum(-1) > next(steps)[:, None]
        return passed.long().argmax(-1, keepdim=True)

    with evaluating(model):
        ours = Decoder(model, encoder, config).generate(asked)
        monkeypatch.setattr(torch, "multinomial", drawn)
        theirs = Library(model, encoder, config).generate(asked)
    assert [one.ids for one in ours] == [one.ids for one in theirs]


def test_the_loss_is_that_of_a_plain_forward_pass(model, monkeypatch):
    asked = questions()
    expected = []
    for question in asked:
        ids = torch.tensor([[*question.prompt, *question.reference]])
        with torch.no_grad():
            logits = model.module(ids).logits[0, len(question.prompt) - 1 : -1]
        right = torch.tensor(question.reference)
        expected.append(torch.nn.functional.cross_entropy(logits, right, reduction="sum").item())
    monkeypatch.setattr(context, "WORTH_A_PASS", 1)
    plain = Decoder(model, Encoder(Numbers(-1), 16, BUDGET - 1), EvaluationConfig())
    with evaluating(model):
        unmeasured = plain.generate([Question(q.prompt) for q in asked])
        for most in (1 << 26, 1):  # all at once, and a column at a time
            monkeypatch.setattr(decoding, "MOST_LOGITS", most)
            found = plain.generate(asked)
            assert [one.loss for one in found] == pytest.approx(expected, rel=1e-6)
            assert [one.ids for one in found] == [one.ids for one in unmeasured]


def test_who_leaves_changes_nothing_for_those_who_stay(model, monkeypatch):
    config = EvaluationConfig()
    encoder = encoder_of(model, config)
    found, widths = [], []
    forward = model.module.forward
    monkeypatch.setattr(
        model.module, "forward", lambda ids, **k: widths.append(len(ids)) or forward(ids, **k)
    )
    for leave in (2, 0, decoding.LEAVE):
        monkeypatch.setattr(decoding, "LEAVE", leave)
        with evaluating(model):
            found.append(Decoder(model, encoder, config).generate(questions()))
        assert (min(widths) == 9) == (leave == 2)
        widths.clear()
    assert found[0] == found[1] == found[2]


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8),
    temperature=st.floats(0.2, 4),
    top_k=st.none() | st.integers(1, 9),
)
def test_what_is_sampled_has_transformers_distribution(logits, temperature, top_k):
    scores = torch.tensor([logits])
    warped = transformers.TemperatureLogitsWarper(temperature)(None, scores)
    if top_k is not None:
        warped = transformers.TopKLogitsWarper(top_k)(None, warped)
    draws = ((torch.arange(4096) + 0.5) / 4096).float()
    tokens = sampled(scores.expand(4096, -1), draws, temperature, top_k)
    shares = torch.bincount(tokens, minlength=len(logits)) / 4096
    torch.testing.assert_close(shares, warped.softmax(-1)[0], atol=1 / 2048, rtol=0)


def test_models_that_transformers_generates_with_in_its_own_way_are_left_to_it(model):
    assert fits(model.module)

    class Own(type(model.module)):
        def prepare_inputs_for_generation(self, *args, **kwargs):
            return super().prepare_inputs_for_generation(*args, **kwargs)

    assert not fits(Own(model.module.config))


@pytest.mark.parametrize("name", OTHER)
def test_other_models_answer_too(name):
    model = Model(OTHER[name]())
    assert not fits(model.module)
    encoder = Encoder(Numbers(0), 16, 3)
    rows = [{"prompt": "7 8 9", "answer": "1"}, {"prompt": "3", "answer": "2 2"}]
    found = answer(model, encoder, rows, EvaluationConfig())
    for row, one in zip(rows, found, strict=True):
        ids = [int(word) for word in row["prompt"].split()]
        for token in one.text.split():
            with torch.no_grad():
                assert model.module(torch.tensor([ids])).logits[0, -1].argmax() == int(token)
            ids.append(int(token))
        assert one.loss is None


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_prompts_are_read_with_little_padding(lengths):
    lengths.sort(reverse=True)
    groups = [lengths[rows] for rows in context.alike(lengths)]
    assert [length for group in groups for length in group] == lengths
    for group in groups:
        wide = [n for i, n in enumerate(group) if sum(group[:i]) >= context.WORTH_A_PASS]
        assert all(n >= (1 - context.PADDING) * group[0] for n in wide)


@given(
    lengths=st.lists(st.integers(1, 40), max_size=30),
    room=st.integers(0, 10),
    most=st.integers(1, 100),
)
def test_batches_hold_every_example_once_and_no_more_than_they_may(lengths, room, most):
    found = batches(np.array(lengths, dtype=np.int64), room, most)
    order = [i for batch in found for i in batch.tolist()]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    taken = [(lengths[batch[0]] + room, len(batch)) for batch in found]
    assert all(rows == 1 or width * rows <= most for width, rows in taken)
    assert all(width * (rows + 1) > most for width, rows in taken[:-1])


def test_a_broken_models_draws_are_tokens_all_the_same():
    drawn = sampled(torch.full((2, 5), torch.nan), torch.tensor([0.1, 0.9]), 1.0, None)
    assert drawn.tolist() == [4, 4]


def test_a_model_that_carries_a_state_is_given_no_padding():
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 97, "intermediate_size": 48}
    more = {"num_attention_heads": 4, "lru_width": 32, "attention_window_size": 8}
    model, asked = Model(transformers.RecurrentGemmaConfig(**shape, **more)), questions()
    with evaluating(model):
        library = Library(model, Encoder(Numbers(-1), 16, BUDGET - 1), EvaluationConfig())
        together = library.generate(asked)
        assert together == [library.generate([question])[0] for question in asked]
