"""Reading TRACE's layout, and naming all that is wrong with it."""

import json

import pytest

from cl_mofo.data.records import read_folder
from cl_mofo.discovery import registry
from cl_mofo.errors import UserError

GOOD = [{"prompt": "1 + 1 =", "answer": "2"}]


@pytest.fixture
def folder(tmp_path):
    """A good folder of two tasks."""
    for task in ("FOMC", "Py150"):
        (tmp_path / task).mkdir()
        for split in ("train", "eval", "test"):
            (tmp_path / task / f"{split}.json").write_text(json.dumps(GOOD))
    return tmp_path


def refusal(folder, tasks=("FOMC", "Py150")) -> str:
    with pytest.raises(UserError) as caught:
        read_folder(folder, tasks)
    return str(caught.value)


def test_a_good_folder(folder):
    found = read_folder(folder, ["Py150", "FOMC"])
    assert list(found.records) == ["Py150", "FOMC"]
    assert found.records["FOMC"]["eval"] == GOOD
    # sha256sum of the very bytes, so that a manifest can be checked with standard tools.
    assert set(found.hashes) == {
        f"{t}/{s}.json" for t in found.records for s in ("train", "eval", "test")
    }
    assert len(set(found.hashes.values())) == 1


def test_trace_itself(trace_500):
    names = [task.name for task in registry().suite("trace")]
    found = read_folder(trace_500, names)
    sizes = [len(found.records[name]["train"]) for name in names]
    assert sizes == [500, 500, 80, 500, 500, 500, 500, 500]
    assert len(found.auxiliary) == 1030


def test_extra_keys_and_a_byte_order_mark_do_no_harm(folder):
    text = json.dumps([{**GOOD[0], "id": 7}])
    (folder / "FOMC" / "train.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_folder(folder, ["FOMC"]).records["FOMC"]["train"] == GOOD


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "FOMC/test.json: the file is empty"),
        (b"  \n", "FOMC/test.json: the file is empty"),
        (b"[]", "FOMC/test.json: the list is empty"),
        (b"{}", "FOMC/test.json: a list of records was expected, not a dict"),
        (b'[\n {"prompt": "a",\n  "answer" "b"}]', "FOMC/test.json: line 3, column 12"),
        (b"[" * 100_000, "FOMC/test.json: not JSON"),
        (b'[{"prompt": "a", "answer": ' + b"9" * 5000 + b"}]", "FOMC/test.json"),
        ('["\xe4"]'.encode("latin-1"), "FOMC/test.json: byte 2 is not UTF-8"),
        (b'["a"]', "FOMC/test.json: record 0 is a str"),
        (b'[{"prompt": "a", "label": "b"}]', 'record 0 has no "answer" (keys: prompt, label)'),
        (b'[{"prompt": "a", "answer": 2}]', 'record 0 has a int as "answer"'),
        (b'[{"prompt": "a", "answer": null}]', 'record 0 has a NoneType as "answer"'),
        (b'[{"prompt": "a", "answer": ""}]', 'record 0 has an empty "answer"'),
        (b'[{"prompt": "", "answer": "a"}]', 'record 0 has an empty "prompt"'),
        (b'[{"prompt": "\\ud800", "answer": "a"}]', "lone surrogate"),
    ],
)
def test_what_is_wrong_is_named(folder, data, message):
    (folder / "FOMC" / "test.json").write_bytes(data)
    assert message in refusal(folder)


def test_all_problems_come_at_once(folder):
    (folder / "FOMC" / "train.json").unlink()
    (folder / "FOMC" / "eval.json").write_text("[")
    (folder / "Py150" / "test.json").write_text(json.dumps([{"prompt": "a"}] * 9))
    text = refusal(folder, ("FOMC", "Py150", "ScienceQA"))
    assert "FOMC/train.json: the file is missing" in text
    assert "FOMC/eval.json: line 1" in text
    assert "ScienceQA: the folder" in text
    assert "record 4 has no" in text
    assert "record 5 has no" not in text
    assert "4 more records like these" in text


def test_no_folder(tmp_path):
    assert "there is no such folder" in refusal(tmp_path / "gone")


def test_a_directory_in_place_of_a_file(folder):
    (folder / "FOMC" / "test.json").unlink()
    (folder / "FOMC" / "test.json").mkdir()
    assert "FOMC/test.json" in refusal(folder)


def test_auxiliary_data_are_optional_and_only_their_training_file_is_read(folder):
    assert read_folder(folder, ["FOMC"]).auxiliary == []
    (folder / "Lima").mkdir()
    (folder / "Lima" / "train.json").write_text(json.dumps(GOOD))
    (folder / "Lima" / "test.json").write_text('[{"prompt": "a", "answer": ""}]')
    assert read_folder(folder, ["FOMC"]).auxiliary == GOOD
    (folder / "Lima" / "train.json").write_text("[")
    (folder / "FOMC" / "test.json").unlink()
    text = refusal(folder)
    assert "Lima/train.json: line 1" in text
    assert "FOMC/test.json: the file is missing" in text
