"""What else a run keeps to go on: files with checksums, answers so far, and progress."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_mofo.evaluation.answers import Answer
from cl_mofo.evaluation.journal import Journal, forget
from cl_mofo.files import DamagedError, checked_line, read_checked, write_checked, write_whole
from cl_mofo.progress import Progress
from tests.states import files_end_at, folder, nested, same

few = settings(max_examples=60, deadline=None)
some = settings(max_examples=150, deadline=None)

# Files with a checksum.

documents = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda below: (
            st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
)


@few
@given(documents)
def test_a_checked_file_gives_back_what_it_was_given(value):
    with folder() as place:
        write_checked(place / "file.json", value)
        assert same(read_checked(place / "file.json"), value)


@some
@given(documents, st.data())
def test_of_a_changed_checked_file_nothing_else_is_read(value, data):
    with folder() as place:
        file = place / "file.json"
        write_checked(file, value)
        content = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
        file.write_bytes(content)
        with contextlib.suppress(DamagedError):
            assert same(read_checked(file), value)  # such as an e that became an E


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"content": []}',
        b'{"content": {}}',
        b'{"content": {}, "sha256": null}',
        b'{"content": {"a": NaN}, "sha256": "0"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_is_no_checked_file(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"file\.json"):
        read_checked(tmp_path / "file.json")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "file"
    write_whole(file, [b"before"])
    for size in range(6):
        with files_end_at(size), pytest.raises(OSError, match="File too large"):
            write_whole(file, [b"af", b"ter!"])
        assert file.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [file]


# Answers so far.


@few
@given(
    st.lists(st.lists(st.text(max_size=6), min_size=1, max_size=3), min_size=1, max_size=4),
    st.data(),
)
def test_answers_that_were_written_to_their_end_are_known(batches, data):
    with folder() as place:
        journal = Journal(place, "01-A-B", 0)
        ends, number, written = [0], 0, {}
        for batch in batches:
            answers = {number + i: Answer(text, i > 0, i) for i, text in enumerate(batch)}
            number += len(batch)
            journal.keep(answers)
            (file,) = place.iterdir()
            ends.append(file.stat().st_size)
            written[ends[-1]] = answers
        assert journal.known(number) == {k: v for a in written.values() for k, v in a.items()}
        cut = data.draw(st.integers(0, ends[-1]))
        file.write_bytes(file.read_bytes()[:cut])
        # A batch's last byte only ends its line.
        whole = {k: v for end, a in written.items() if end - 1 <= cut for k, v in a.items()}
        assert journal.known(number) == whole
        journal.keep({0: Answer("later", finished=True, tokens=2)})
        assert journal.known(number)[0].text == "later"


def test_what_is_no_journal_is_none_and_in_nobodys_way(tmp_path):
    journal = Journal(tmp_path, "01-A-B", 0)
    answers = {0: Answer("a", finished=True, tokens=1)}
    os.mkfifo(tmp_path / "01-A-B.0.answers")
    (tmp_path / "01-A-B.1.answers").mkdir()
    (tmp_path / "01-A-B.2.answers").symlink_to("/dev/zero")
    (tmp_path / "01-A-B.3.answers").write_bytes(checked_line({"answers": [{"0": "a"}]}))
    assert journal.known(1) == {}
    journal.keep(answers)
    assert journal.known(1) == answers


def test_a_journal_may_be_longer_than_a_file_of_json(tmp_path, monkeypatch):
    journal = Journal(tmp_path, "01-A-B", 0)
    answers = {i: Answer("a" * 50, finished=True, tokens=1) for i in range(9)}
    for i, answer in answers.items():
        journal.keep({i: answer})
    monkeypatch.setattr("cl_mofo.evaluation.journal.MOST_BYTES", 300)
    assert journal.known(9) == answers


@pytest.mark.parametrize(("learned", "left"), [(-1, 0), (0, 1), (1, 2), (10, 3)])
def test_answers_of_a_later_model_are_forgotten(tmp_path, learned, left):
    names = [f"{name}-B" for name in ("00-initial", "01-A", "10-A")]
    for name in names:
        Journal(tmp_path, name, 0).keep({0: Answer("a", finished=True, tokens=1)})
    forget(tmp_path, learned)
    assert [bool(Journal(tmp_path, name, 0).known(1)) for name in names] == [
        number < left for number in range(3)
    ]


# Progress.


def measured() -> Progress:
    progress = Progress.of(2)
    progress.add(0, 0, {"accuracy": 50.0, "other": 1}, "accuracy", 2.5)
    progress.add(1, 0, {"accuracy": 75.0}, "accuracy", None)
    progress.distances, progress.learned, progress.skipped = [0.25], 1, 3
    return progress


def test_progress_comes_back():
    found = Progress.from_json(json.loads(json.dumps(measured().to_json())), 2)
    assert found == measured()
    assert (found.measured("seen"), found.missing(1, [0, 1])) == (1, [1])


BAD: Sequence[tuple[str, Any]] = [
    *((name, value) for name in ("scores", "metrics", "losses") for value in (None, [], {}, [[]])),
    *((name, [[None, None]] * 2) for name in ("scores", "metrics", "losses")),
    *((name, [[None, True]] * 3) for name in ("scores", "metrics", "losses")),
    *((name, [[None, "1"]] * 3) for name in ("scores", "metrics", "losses")),
    *((name, [[math.nan, None]] * 3) for name in ("scores", "losses")),
    ("metrics", [[{"accuracy": None}, None]] * 3),
    ("distances", [1.0, 2.0, 3.0]),
    ("distances", ["1"]),
    ("distances", [math.inf]),
    ("distances", None),
    ("learned", -1),
    ("learned", 3),
    ("learned", 1.0),
    ("learned", True),
    ("skipped", -1),
    ("skipped", None),
    ("seconds", {"training": 1.0}),
    ("seconds", {"training": 1.0, "evaluation": None}),
    ("seconds", {"training": 1.0, "evaluation": 1.0, "other": 1.0}),
    ("more", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_progress_of_another_form_is_refused(name, value):
    with pytest.raises(DamagedError, match="of another form"):
        Progress.from_json(measured().to_json() | {name: value}, 2)


def test_progress_over_other_tasks_is_refused():
    with pytest.raises(DamagedError, match="of another form"):
        Progress.from_json(measured().to_json(), 3)
    for missing in measured().to_json().keys() - {"prose"}:
        found = {k: v for k, v in measured().to_json().items() if k != missing}
        with pytest.raises(DamagedError, match="of another form"):
            Progress.from_json(found, 2)


@some
@given(documents | st.dictionaries(st.sampled_from([*Progress.of(1).to_json()]), nested))
def test_progress_is_never_taken_from_anything_else(found):
    with contextlib.suppress(DamagedError):
        assert Progress.from_json(found, 1).to_json() == {"prose": []} | found


def test_progress_from_before_prose_was_measured_is_taken():
    found = measured().to_json()
    del found["prose"]
    assert Progress.from_json(found, 2) == measured()


def test_going_back_forgets_what_came_after():
    progress = measured()
    progress.back_to(0)
    assert (progress.learned, progress.distances) == (0, [])
    assert progress.scores == [[50.0, None], [None, None], [None, None]]
    assert progress.losses[0][0] == 2.5
