"""Test sets larger than memory: read once, then record by record; and JSON as `json` reads it."""

import hashlib
import io
import json
import tracemalloc

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cl_mofo.config import EvaluationConfig
from cl_mofo.data import Column, make_benchmark
from cl_mofo.data import jsonlist as jl
from cl_mofo.data.records import Record, read_folder
from cl_mofo.data.tokenise import Encoder
from cl_mofo.errors import UserError
from cl_mofo.evaluation import score
from cl_mofo.evaluation.generate import answer
from cl_mofo.evaluation.losses import answer_loss

ROWS = [{"prompt": f"{i} + {i} = é\n😀", "answer": f"{2 * i}"} for i in range(20)]


def folder_of(path, text: str | bytes, task="FOMC"):
    """Write one task's three files of one content, and return the folder."""
    data = text.encode() if isinstance(text, str) else text
    (path / task).mkdir(parents=True)
    for split in ("train", "eval", "test"):
        (path / task / f"{split}.json").write_bytes(data)
    return path


@pytest.fixture(params=[1, 7, 1 << 20], ids="chunk={}".format)
def chunk(request, monkeypatch):
    """Bytes read at a time, so that every place of a file is once the end of what was read."""
    monkeypatch.setattr(jl, "CHUNK", request.param)


FORMS = {
    "one line": json.dumps(ROWS),
    "unescaped": json.dumps(ROWS, ensure_ascii=False),
    "indented": json.dumps(ROWS, ensure_ascii=False, indent=2),
    "a byte order mark": "\ufeff" + json.dumps(ROWS, ensure_ascii=False),
    "spaces": " \n[\t" + "\r\n ,\n".join(json.dumps(row) + " " for row in ROWS) + "\n]\n\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_records_come_from_the_file_as_json_gives_them(tmp_path, chunk, form):
    folder = folder_of(tmp_path, FORMS[form])
    found = read_folder(folder, ["FOMC"])
    rows = found.records["FOMC"]["test"]
    assert list(rows) == ROWS
    assert rows == ROWS
    assert rows != ROWS[1:]
    assert [rows[-1], rows[3]] == [ROWS[-1], ROWS[3]]
    assert rows[2:5] == ROWS[2:5]
    assert len(rows[:3]) == 3
    assert list(Column(rows, "prompt")[4:6]) == [row["prompt"] for row in ROWS[4:6]]
    data = FORMS[form].encode()
    assert found.hashes["FOMC/test.json"] == hashlib.sha256(data).hexdigest()


def of_json(data: bytes) -> object:
    """What `json` says of bytes: a list, or its message."""
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    except UnicodeDecodeError:
        return "not UTF-8"
    return found


def of_stream(data: bytes) -> object:
    try:
        found = list(jl.values(io.BytesIO(data)))
    except jl.MalformedError as error:
        return "not UTF-8" if "UTF-8" in str(error) else str(error)
    assert all(json.loads(data[v.start : v.start + len(v.data)]) == v.value for v in found)
    return [value.value for value in found]


TEXT = json.dumps([{"a\\": 'é"\n😀', "b": [-1.5e3, 10, True, None, {}]}, 12, "x"], indent=1)


@settings(max_examples=400, deadline=None)
@given(
    data=st.binary(max_size=12).map(TEXT.encode()[:40].__add__)
    | st.tuples(st.integers(0, len(TEXT)), st.binary(max_size=3), st.integers(0, 9)).map(
        lambda t: TEXT.encode()[: t[0]] + t[1] + TEXT.encode()[t[0] + t[2] :]
    )
    | st.text('[]{}",:\\u012eE.-+ \ntfn', max_size=12).map(lambda t: f"[1,{t}".encode()),
    size=st.sampled_from([1, 2, 3, 5, 16, 1000]),
)
@example(b"[1,]", 1)
@example(b"[1 2]", 1)
@example(b"[1", 1)
@example(b"[1]]", 1)
@example(b"[-Infinity, 1e", 1)
@example(b'["\\ud83d\\ude00", "\\u12"]', 1)
@example('["\u2028é'.encode(), 2)
@example(b'"[\n', 1)
def test_what_is_taken_and_what_is_said_is_what_json_takes_and_says(data, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jl, "CHUNK", size)
        found, expected = of_stream(data), of_json(data)
    if expected == "not UTF-8" or "given twice" in str(found):
        assert isinstance(found, str)
    elif found == "the file is empty":
        assert not data.decode("utf-8-sig").strip()
    elif isinstance(expected, (str, list)) and not data.decode("utf-8-sig").lstrip().startswith(
        '"'
    ):
        assert repr(found) == repr(expected)  # by repr, as NaN is not NaN
    elif repr(found) != repr(expected):  # a text that is broken too may be told of as either
        assert "a list of records was expected" in str(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"data": []}', "a list of records was expected, not a dict"),
        ('{"prompt": "a"}\n{"prompt": "b"}', "line 2, column 1: Extra data"),
        ('[{"prompt": "a", "answer": "b", "prompt": "c"}]', "the key 'prompt' is given twice"),
        ('[{"prompt": "a", "answer": NaN}]', 'has a float as "answer"'),
        ("[{}" + ", {}" * 9 + "]", "5 more records like these"),
    ],
)
def test_what_is_no_list_of_records_is_refused(tmp_path, text, said):
    with pytest.raises(UserError) as refusal:
        read_folder(folder_of(tmp_path, text), ["FOMC"])
    assert f"FOMC/test.json: {said}" in str(refusal.value) or said in str(refusal.value)


def test_a_value_without_end_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(jl, "LONGEST", 10_000)
    monkeypatch.setattr(jl, "CHUNK", 1000)
    endless = io.BytesIO(b'["' + b"a" * 10_000_000)
    with pytest.raises(jl.MalformedError, match="record 0 is longer than"):
        list(jl.values(endless))
    assert endless.tell() < 50_000


def test_a_file_that_changes_while_it_is_in_use_is_recognised(tmp_path):
    folder = folder_of(tmp_path, json.dumps(ROWS))
    rows = read_folder(folder, ["FOMC"]).records["FOMC"]["test"]
    file = folder / "FOMC" / "test.json"
    data = file.read_bytes()
    file.touch()
    assert rows[4] == ROWS[4]
    with file.open("r+b") as open_file:
        open_file.seek(data.index(b'"8"') + 1)
        open_file.write(b"9")
    assert rows[3] == ROWS[3]
    with pytest.raises(UserError, match=r"FOMC/test\.json: record 4 is no longer what it was"):
        rows[4]
    file.write_bytes(b"")
    with pytest.raises(UserError, match="record 3"):
        rows[3]


def test_a_file_that_is_replaced_or_deleted_is_still_read(tmp_path):
    folder = folder_of(tmp_path, json.dumps(ROWS))
    rows = read_folder(folder, ["FOMC"]).records["FOMC"]["test"]
    (folder / "FOMC" / "test.json").unlink()
    assert rows == ROWS


class Echo(torch.nn.Module):
    """Generates one token, the last of the prompt."""

    def generate(self, input_ids, attention_mask, generation_config):
        return torch.cat([input_ids, input_ids[:, -1:]], 1)


class Characters:
    """A tokenizer whose ids are code points."""

    eos_token_id, bos_token_id = 0, None

    def __call__(self, texts, **kwargs):
        return {"input_ids": [[ord(c) for c in text] for text in texts]}

    def decode(self, ids, **kwargs):
        return "".join(map(chr, ids))


class Model:
    module, tokenizer, device = Echo(), Characters(), torch.device("cpu")

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


def peak_while_answering(folder, expected: int) -> int:
    """Return the most bytes that Python held while a test set was read, answered and scored."""
    from cl_mofo.config import DataConfig
    from cl_mofo.data.suites import load_suite
    from cl_mofo.discovery import registry

    registry().task("FOMC")
    tracemalloc.start()
    suite = load_suite(DataConfig(suite="trace", path=str(folder)), ["FOMC"])
    experience = make_benchmark(suite.records).test_stream[0]
    rows = suite.records["FOMC"]["test"]
    assert len(experience.dataset) == len(rows) == expected
    answers = answer(
        Model(),  # type: ignore[arg-type]
        Encoder(Characters(), 50, 4),
        rows,
        EvaluationConfig(batch_size=8),
    )
    assert [a.text for a in answers[:3]] == ["0", "1", "2"]
    found = score("FOMC", [a.text for a in answers], Column(rows, "answer"), Column(rows, "prompt"))
    assert found["accuracy"] == 100
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_a_test_set(tmp_path):
    peaks = {}
    for megabytes in (8, 40):
        count = megabytes * 50
        long = "x" * 20_000
        folder = folder_of(tmp_path / str(megabytes), json.dumps(ROWS))
        with (folder / "FOMC" / "test.json").open("w") as file:
            for i in range(count):
                row = Record(prompt=f"{long}{i % 10}", answer=str(i % 10))
                file.write(("[" if i == 0 else ", ") + json.dumps(row))
            file.write("]")
        assert (folder / "FOMC" / "test.json").stat().st_size > megabytes * 1_000_000
        peaks[megabytes] = peak_while_answering(folder, count)
    # Answers are kept, some hundred bytes each; of 32 MB more of prompts, nothing.
    assert peaks[40] < peaks[8] + 2_000_000


@pytest.mark.parametrize("size", [2, 16])
def test_answers_and_losses_of_a_file_are_those_of_a_list(tiny, tmp_path, size):
    rows = [{"prompt": f"{'ab ' * (i % 5)}{i} =", "answer": "x" * (i % 3 + 1)} for i in range(11)]
    lazily = read_folder(folder_of(tmp_path, json.dumps(rows)), ["FOMC"]).records["FOMC"]["test"]
    encoder = Encoder(tiny.tokenizer, 32, 4)
    config = EvaluationConfig(batch_size=size, decoding="sample", temperature=2.0)
    assert answer(tiny, encoder, lazily, config) == answer(tiny, encoder, rows, config)
    assert answer_loss(tiny, encoder, lazily, config) == answer_loss(tiny, encoder, rows, config)
