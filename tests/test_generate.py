"""Answers and losses of a model on a test set."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from cl_mofo import mini
from cl_mofo.config import EvaluationConfig, ModelConfig
from cl_mofo.data.tokenise import Encoder
from cl_mofo.evaluation.generate import answer
from cl_mofo.evaluation.losses import answer_loss
from cl_mofo.model import load_model

RECORDS = mini.records()["FOMC"]["test"][:5] + mini.records()["Py150"]["test"][:4]


def greedy(language_model, encoder, prompt):
    """The slow way: one prompt, no cache, no padding, the likeliest token again and again."""
    ids = encoder.prompt(prompt)
    generated = []
    while len(generated) <= encoder.answer_tokens:
        with torch.no_grad():
            generated.append(
                language_model.module(torch.tensor([ids + generated])).logits[0, -1].argmax().item()
            )
        if generated[-1] == encoder.eos:
            break
    return generated


@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_batched_answers_are_those_of_one_prompt_at_a_time(tiny, batch_size):
    encoder = Encoder(tiny.tokenizer, 96, 12)
    found = answer(tiny, encoder, RECORDS, EvaluationConfig(batch_size=batch_size))
    for record, one in zip(RECORDS, found, strict=True):
        expected = greedy(tiny, encoder, record["prompt"])
        assert one.text == encoder.decode(expected)
        assert one.finished == (encoder.eos in expected)
        assert one.tokens == len(expected)


def test_the_checkpoints_generation_settings_do_not_matter(tiny, tmp_path):
    encoder = Encoder(tiny.tokenizer, 96, 12)
    plain = answer(tiny, encoder, RECORDS, EvaluationConfig())
    tiny.module.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, max_new_tokens=2, top_k=7
    )
    tiny.module.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(path=str(tmp_path)))
    assert answer(loaded, encoder, RECORDS, EvaluationConfig()) == plain


def test_sampling_without_top_k_is_among_all_tokens(tiny):
    encoder = Encoder(tiny.tokenizer, 96, 12)
    hot = {"decoding": "sample", "temperature": 50.0}
    everything, few, fifty = (
        answer(tiny, encoder, RECORDS, EvaluationConfig(**hot, top_k=k)) for k in (None, 1, 50)
    )
    assert everything != fifty
    assert few == answer(tiny, encoder, RECORDS, EvaluationConfig())


def test_traces_budget_counts_the_end(tiny):
    for joint, most in ((True, 3), (False, 4)):
        encoder = Encoder(tiny.tokenizer, 96, 3, joint=joint)
        found = answer(tiny, encoder, RECORDS, EvaluationConfig())
        assert max(one.tokens for one in found) == most


def test_an_answer_cut_by_its_budget_says_so(tiny):
    encoder = Encoder(tiny.tokenizer, 96, 1)
    for one in answer(tiny, encoder, RECORDS, EvaluationConfig()):
        assert one.tokens == 2 or one.finished


def test_answering_leaves_mode_and_random_state_as_they_were(tiny):
    tiny.module.train()
    before = torch.random.get_rng_state()
    settings = EvaluationConfig(decoding="sample", temperature=0.5)
    answer(tiny, Encoder(tiny.tokenizer, 96, 4), RECORDS[:2], settings)
    assert tiny.module.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sampling_follows_its_seed(tiny):
    encoder = Encoder(tiny.tokenizer, 96, 12)
    settings = EvaluationConfig(decoding="sample", temperature=3.0)
    one, same, other = (answer(tiny, encoder, RECORDS, settings, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_progress_counts_every_example(tiny):
    done = []
    encoder = Encoder(tiny.tokenizer, 96, 2)
    settings = EvaluationConfig(batch_size=4)
    found = answer(tiny, encoder, RECORDS, settings, advance=lambda *n: done.append(n))
    assert [sum(n) for n in zip(*done, strict=True)] == [
        len(RECORDS),
        sum(one.tokens for one in found),
    ]


def test_the_loss_is_the_mean_over_answer_tokens(tiny):
    encoder = Encoder(tiny.tokenizer, 96, 64)
    total, count = 0.0, 0
    for record in RECORDS:
        example = encoder.encode(record["prompt"], record["answer"])
        labels = torch.tensor([example.ids])
        labels[:, : -example.supervised] = -100
        with torch.no_grad():
            mean = tiny.module(torch.tensor([example.ids]), labels=labels).loss.item()
        total += mean * example.supervised
        count += example.supervised
    for size in (1, 4):
        loss = answer_loss(tiny, encoder, RECORDS, EvaluationConfig(batch_size=size))
        assert loss == pytest.approx(total / count, rel=1e-5)


def test_a_model_that_cannot_restrict_its_logits_gives_the_same_loss(tiny):
    encoder = Encoder(tiny.tokenizer, 96, 64)
    expected = answer_loss(tiny, encoder, RECORDS, EvaluationConfig())
    full = copy.deepcopy(tiny)

    class Whole(type(full.module)):
        def forward(self, input_ids, attention_mask=None, use_cache=None):
            return super().forward(input_ids, attention_mask=attention_mask, use_cache=use_cache)

    full.module.__class__ = Whole
    assert answer_loss(full, encoder, RECORDS, EvaluationConfig()) == pytest.approx(
        expected, rel=1e-6
    )
