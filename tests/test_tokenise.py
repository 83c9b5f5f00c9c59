"""What is trained on is what inference sees, and decoding gives the answer back."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cl_mofo.data.records import read_folder
from cl_mofo.data.tokenise import Encoder
from cl_mofo.discovery import registry


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Words a..f are ids 0..5; special tokens follow."""
    words = {word: i for i, word in enumerate("abcdef")}
    core = Tokenizer(models.WordLevel(words | {"?": 6}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


WITH_BOS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer(**WITH_BOS)


def test_prompt_answer_and_ends(words):
    bos, eos = words.bos_token_id, words.eos_token_id
    example = Encoder(words, 10, 10).encode("a b c", "d e")
    assert example.ids == (bos, 0, 1, 2, 3, 4, eos)
    assert example.supervised == 3


def test_without_a_beginning_token_none_is_added():
    words = word_tokenizer(eos_token="</s>")
    assert Encoder(words, 10, 10).encode("a", "b").ids == (0, 1, words.eos_token_id)


def test_the_oldest_of_the_prompt_is_cut_and_never_the_answer(words):
    bos, eos = words.bos_token_id, words.eos_token_id
    example = Encoder(words, 3, 2).encode("a b c d", "e f")
    assert example.ids == (bos, 2, 3, 4, 5, eos)


def test_the_end_survives_the_answers_truncation(words):
    eos = words.eos_token_id
    assert Encoder(words, 9, 2).encode("a", "b c d").ids[-3:] == (1, 2, eos)


def test_a_budget_of_one_leaves_the_beginning_only(words):
    assert Encoder(words, 1, 1).prompt("a b c") == [words.bos_token_id]


def test_jointly_as_trace_does(words):
    bos, eos = words.bos_token_id, words.eos_token_id
    room = Encoder(words, 3, 4, joint=True)
    assert room.encode("a b ", "c d").ids == (bos, 0, 1, 2, 3, eos)
    assert room.encode("a b ", "c d").supervised == 3
    # Six ids and a limit of seven: the end fits, the beginning does not.
    assert room.encode("a b c d ", "e f").ids == (0, 1, 2, 3, 4, 5, eos)
    # At the limit neither fits, and the mask, taken from the closed answer, takes in a prompt id.
    full = room.encode("a b c d e f ", "e f")
    assert full.ids == (1, 2, 3, 4, 5, 4, 5)
    assert full.supervised == 3
    assert room.prompt("a b c d") == [1, 2, 3]
    assert room.prompt("a b") == [bos, 0, 1]


@pytest.mark.parametrize("text", ["</s>", "a </s> b", "<s>"])
def test_special_tokens_in_the_data_are_text(tiny, text):
    encoder = Encoder(tiny.tokenizer, 64, 64)
    ids = encoder.text_ids(text)
    assert encoder.eos not in ids
    assert encoder.bos[0] not in ids
    assert encoder.decode([*ids, encoder.eos, 5, 6]) == text


def test_a_special_token_in_an_answer_stays_visible(tiny):
    encoder = Encoder(tiny.tokenizer, 64, 64)
    ids = [*encoder.text_ids("B"), *encoder.bos, encoder.eos]
    assert encoder.decode(ids) != "B"
    assert encoder.decode(ids, skip_special_tokens=True) == "B"


def test_every_answer_of_trace_comes_back(trace_500, tiny):
    encoder = Encoder(tiny.tokenizer, 10**9, 10**9)
    records = read_folder(trace_500, [task.name for task in registry().suite("trace")]).records
    for splits in records.values():
        for rows in splits.values():
            for row in rows:
                assert encoder.decode(encoder.text_ids(row["answer"])) == row["answer"]


def test_training_starts_with_what_inference_is_given(trace_500, tiny):
    encoder = Encoder(tiny.tokenizer, 48, 16)
    for row in read_folder(trace_500, ["Py150"]).records["Py150"]["test"]:
        example = encoder.encode(row["prompt"], row["answer"])
        assert list(example.ids[: -example.supervised]) == encoder.prompt(row["prompt"])
