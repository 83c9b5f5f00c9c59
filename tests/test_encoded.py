"""Encoded records: what was encoded once is found again, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cl_mofo import cachedir
from cl_mofo.data import encoded
from cl_mofo.data.encoded import encode_records
from cl_mofo.data.records import Record
from cl_mofo.data.tokenise import Encoder
from cl_mofo.model import LanguageModel

WORDS = ["the", "Answer: 42", "  ", "ü€😀", "</s>", "<|endoftext|>", "a b c d e f", "\n"]
text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map("".join)
rows_drawn = st.lists(st.tuples(text, text), min_size=1, max_size=9)


def records_of(pairs: list[tuple[str, str]]) -> list[Record]:
    return [Record(prompt=prompt, answer=answer) for prompt, answer in pairs]


MANY = records_of([(f"question {i} " + "x y " * (i % 7), f"answer {i}") for i in range(20)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cachedir.VARIABLE, str(tmp_path))
    monkeypatch.setattr(encoded, "WORTH_KEEPING", 1)
    monkeypatch.setattr(encoded, "ROWS", 8)
    return tmp_path / "examples"


class Counted(Encoder):
    """Counts how many texts it has encoded."""

    texts = 0

    def _ids(self, texts: Any) -> list[list[int]]:
        self.texts += len(texts)
        return super()._ids(texts)


def check(found: encoded.Encoded, encoder: Encoder, records: list[Record]) -> None:
    examples = [encoder.encode(row["prompt"], row["answer"]) for row in records]
    assert list(found) == examples
    assert found[1:3] == examples[1:3]
    assert found[-1] == examples[-1]
    assert found.lengths.tolist() == [len(example) for example in examples]
    assert found.supervised.tolist() == [example.supervised for example in examples]
    prompts = [encoder.prompt(row["prompt"]) for row in records]
    assert [found.prompt(i) for i in range(len(records))] == prompts
    assert found.prompt_lengths.tolist() == [len(prompt) for prompt in prompts]


@given(rows_drawn, st.integers(1, 20), st.integers(1, 6), st.booleans())
@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40
)
def test_records_become_what_the_encoder_makes_of_each(
    tiny: LanguageModel, folder: Path, pairs: Any, prompt: int, answer: int, joint: bool
) -> None:
    encoder, records = Encoder(tiny.tokenizer, prompt, answer, joint=joint), records_of(pairs)
    check(encode_records(encoder, records), encoder, records)  # made
    check(encode_records(encoder, records), encoder, records)  # found


def test_what_was_encoded_is_not_encoded_again(tiny: LanguageModel, folder: Path) -> None:
    first, second = Counted(tiny.tokenizer, 9, 4), Counted(tiny.tokenizer, 9, 4)
    made, found = encode_records(first, MANY), encode_records(second, MANY)
    assert (first.texts, second.texts) == (40, 0)
    assert list(found) == list(made)


@pytest.mark.parametrize(
    "change", ["prompt", "answer", "joint", "eos", "a record", "the order", "the code"]
)
def test_another_encoder_or_other_records_are_encoded_anew(
    tiny: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    encode_records(Encoder(tiny.tokenizer, 9, 4), MANY)
    other = Encoder(
        tiny.tokenizer,
        8 if change == "prompt" else 9,
        3 if change == "answer" else 4,
        joint=change == "joint",
    )
    if change == "eos":
        other.eos += 1
    if change == "the code":
        monkeypatch.setattr(encoded, "source_digest", lambda: "another version's")
    records = {"a record": [*MANY[:-1], MANY[0]], "the order": MANY[::-1]}.get(change, MANY)
    check(encode_records(other, records), other, records)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_file_is_made_anew(tiny: LanguageModel, folder: Path, damage: str) -> None:
    encoder = Encoder(tiny.tokenizer, 9, 4)
    encode_records(encoder, MANY)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(
        {"flip": bytes(content), "cut": content[:-9], "empty": b"", "text": b"hello"}[damage]
    )
    check(encode_records(encoder, MANY), encoder, MANY)
    (again,) = folder.iterdir()
    assert again.name == path.name
    assert again.read_bytes() != content


def test_little_text_is_not_kept(tiny: LanguageModel, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(encoded, "WORTH_KEEPING", 10**6)
    encoder = Encoder(tiny.tokenizer, 9, 4)
    check(encode_records(encoder, MANY), encoder, MANY)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("fault", ["off", "full", "a file", "others write"])
def test_without_a_cache_all_goes_on(
    tiny: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "off":
        monkeypatch.setenv(cachedir.VARIABLE, cachedir.OFF)
    elif fault == "full":
        full = OSError(28, "No space left on device")

        def replace(*_: Any) -> None:
            raise full

        monkeypatch.setattr(os, "replace", replace)
    elif fault == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    encoder = Encoder(tiny.tokenizer, 9, 4)
    check(encode_records(encoder, MANY), encoder, MANY)
    if folder.is_dir():
        assert not list(folder.iterdir())


def test_the_longest_unused_goes_first(folder: Path) -> None:
    folder.mkdir(parents=True)
    for age, name in enumerate("abc"):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (1000 - age, 1000 - age))
    cachedir.used(folder / "c")
    cachedir.trim(folder, 20)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]


def test_the_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cachedir.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cachedir.cache_folder("kind")
    assert folder == tmp_path / "cl-mofo" / "kind"
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cachedir.cache_folder("kind") == tmp_path / "home" / ".cache" / "cl-mofo" / "kind"


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (cachedir.VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert cachedir.cache_folder("kind") is None


def test_who_is_interrupted_leaves_nothing(
    tiny: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_records(Encoder(tiny.tokenizer, 9, 4), MANY)
    assert not list(folder.iterdir())
