"""The embedded model: loads from its folder, spells every text, knows its world."""

import hashlib
import json
import math

import pytest

from cl_mofo.compat import repair_torchvision
from cl_mofo.mini import TASKS, records, tiny_path
from cl_mofo.recipes import read_recipe

repair_torchvision()
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from cl_mofo.mini.pretrain import Recipe, mean_loss, new_model, pretrain  # noqa: E402

ODD = (
    "",
    " leading and trailing ",
    "two  spaces\tand\r\nlines\n\n",
    "<s> x <EOL> </s> <pad> <unk>",
    "判断：龘𠜎 繁體字",
    "Grüße aus Zürich, ça va? é vs é",
    "😀👩‍👩‍👧 \u200b\x00\x7f ٣٤ ﬁ Ａ",
    "12345 3.14 -7 1e-5",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_path())


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_text_comes_back(tokenizer):
    suite = records(0)
    rows = [row for task in TASKS for split in suite[task].values() for row in split]
    for text in [*ODD, *(row["prompt"] for row in rows), *(row["answer"] for row in rows)]:
        encoded = ids(tokenizer, text)
        assert tokenizer.decode(encoded) == text
        assert tokenizer.decode(encoded, skip_special_tokens=True) == text
        assert not set(encoded) & set(tokenizer.all_special_ids)


def test_special_tokens_and_digits(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(ids(tokenizer, "1234567890")) == 10
    assert ids(tokenizer, "x") == tokenizer("x")["input_ids"]  # who wants a BOS adds it


def test_budgets_hold_for_other_seeds_and_are_not_idle(tokenizer):
    budgets = read_recipe("trace-mini")["tasks"]
    answers = budgets["answer_tokens"]
    longest = dict.fromkeys(TASKS, 0)
    for seed in range(4):
        for task, splits in records(seed).items():
            for row in (row for rows in splits.values() for row in rows):
                assert len(ids(tokenizer, row["prompt"])) + 1 <= budgets["prompt_tokens"]
                longest[task] = max(longest[task], len(ids(tokenizer, row["answer"])) + 1)
    assert all(longest[task] <= answers[task] <= longest[task] + 8 for task in TASKS)


def test_the_folder_is_small_and_a_plain_llama(model):
    assert sum(f.stat().st_size for f in tiny_path().iterdir()) <= 8_000_000
    config = json.loads((tiny_path() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_it_knows_its_world(model, tokenizer):
    """A uniform guess costs ln(1280) = 7.2 nats a token; a trained model is far below."""
    recipe = Recipe()
    untrained = mean_loss(new_model(recipe, tokenizer), tokenizer)
    trained = mean_loss(model, tokenizer)
    assert untrained > math.log(recipe.vocabulary) - 0.1
    assert trained < 1.0
    for text, fact in (
        ("A spider has 8 legs, so 3 spiders have", " 24"),
        ("6 times 7 is", " 42"),
        ("Most members noted that inflation was too high. This view is", " hawkish"),
    ):
        prompt = torch.tensor([[tokenizer.bos_token_id, *ids(tokenizer, text)]])
        want = len(ids(tokenizer, fact))
        out = model.generate(prompt, max_new_tokens=want, do_sample=False)
        assert tokenizer.decode(out[0, prompt.shape[1] :]) == fact


def test_a_long_prompt_passes_through(model):
    with torch.no_grad():
        logits = model(input_ids=torch.arange(2048)[None] % 1000).logits
    assert logits.shape == (1, 2048, Recipe().vocabulary)
    assert torch.isfinite(logits).all()


def test_pretraining_gives_the_same_bits_again(tmp_path, capsys):
    torch.set_num_threads(1)
    small = Recipe(steps=3, rows=2, length=32, vocabulary=512, hidden=32, mlp=64, layers=1, heads=2)
    digests = []
    for name in ("first", "second"):
        pretrain(tmp_path / name, small)
        assert "step     3  loss" in capsys.readouterr().out
        files = sorted((tmp_path / name).iterdir())
        digests.append({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files})
    assert digests[0] == digests[1]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(digests[0])
    start = new_model(small, AutoTokenizer.from_pretrained(tmp_path / "first"))
    end = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert any(
        not torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True)
    )
