"""A checkpoint's state: values and tensors, and what belongs to parts of parameters."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_mofo.checkpoint import load_state, save_state
from cl_mofo.checkpoint.rows import read_rows
from cl_mofo.files import DamagedError
from cl_mofo.parts import Parts, Span
from tests.states import folder, same, states

few = settings(max_examples=60, deadline=None)
some = settings(max_examples=150, deadline=None)


@some
@given(states)
def test_a_state_comes_back_to_the_bit(state):
    with folder() as place:
        written = save_state(place, state)
        assert sorted(written) == sorted(file.name for file in place.iterdir())
        assert same(load_state(place), state)


def test_tensors_that_share_memory_come_back_each(tmp_path):
    whole = torch.arange(6.0)
    save_state(tmp_path, {"whole": whole, "again": whole, "part": whole[2:4], "row": whole[None]})
    found = load_state(tmp_path)
    assert found["again"].tolist() == whole.tolist()
    assert found["part"].tolist() == [2, 3]
    assert found["row"].shape == (1, 6)


def test_a_pipe_is_damage_and_not_waited_for(tmp_path):
    (tensors, _) = save_state(tmp_path, {"weights": torch.ones(3)})
    for name in (tensors, "steps.parquet"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
    with pytest.raises(DamagedError, match="a pipe or a device"):
        load_state(tmp_path)
    with pytest.raises(DamagedError, match="a pipe or a device"):
        read_rows(tmp_path / "steps.parquet")


@pytest.mark.parametrize("value", [{1, 2}, 1j, object(), b"bytes"])
def test_what_is_no_state_is_refused_by_its_place(tmp_path, value):
    with pytest.raises(TypeError, match=r"state/a/0: a \w+ is neither"):
        save_state(tmp_path, {"a": [value]})


@pytest.mark.parametrize("key", [1.5, None, True, (1,)])
def test_a_key_is_a_text_or_an_integer(tmp_path, key):
    with pytest.raises(TypeError, match=r"the key .* is neither a text nor an integer"):
        save_state(tmp_path, {"a": {key: 1}})


# Parts.


@st.composite
def splits(draw: st.DrawFn, numel: int, ranks: int) -> list[Span]:
    """Draw how a tensor's entries are shared out, in order, by ranks; some may get none."""
    inner = draw(st.lists(st.integers(0, numel), min_size=ranks - 1, max_size=ranks - 1))
    return [Span(a, b - a) for a, b in pairwise([0, *sorted(inner), numel])]


@st.composite
def shared_out(draw: st.DrawFn) -> tuple[dict[str, int], list[Any], list[Any]]:
    sizes = {name: draw(st.integers(0, 12)) for name in ("a", "b.weight")}
    saved, loading = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return (
        sizes,
        [
            dict(zip(sizes, row, strict=True))
            for row in zip(*(draw(splits(n, saved)) for n in sizes.values()), strict=True)
        ],
        [
            dict(zip(sizes, row, strict=True))
            for row in zip(*(draw(splits(n, loading)) for n in sizes.values()), strict=True)
        ],
    )


@few
@given(shared_out())
def test_parts_come_together_for_any_number_of_ranks(case):
    sizes, saved, loading = case
    values = {name: torch.randn(size) for name, size in sizes.items()}
    with folder() as place:
        for rank, spans in enumerate(saved):
            parts = Parts(
                {n: values[n][s.start : s.start + s.numel].clone() for n, s in spans.items()}
            )
            state = {"rank": rank, "ewc": {"fisher": [parts]}, "whole": torch.tensor(rank)}
            save_state(place, state, rank, spans)
        for rank, spans in enumerate(loading):
            wanted = {n: (s, torch.Size([s.numel])) for n, s in spans.items()}
            found = load_state(place, rank, len(saved), wanted)
            own = rank if rank < len(saved) else 0
            assert found["rank"] == found["whole"].item() == own
            (parts,) = found["ewc"]["fisher"]
            for name, span in spans.items():
                expected = values[name][span.start : span.start + span.numel]
                assert torch.equal(parts[name], expected)


def test_what_has_no_parts_yet_comes_back_so(tmp_path):
    save_state(tmp_path, {"fisher": Parts(), "p": Parts(w=torch.ones(2))})
    found = load_state(tmp_path, 0, 1, {"w": (Span(0, 2), torch.Size([2]))})
    assert found["fisher"] == {}
    assert found["p"]["w"].tolist() == [1, 1]


def test_parts_take_the_shape_that_is_wanted(tmp_path):
    whole = torch.arange(6.0)
    for rank in range(2):
        span = Span(3 * rank, 3)
        save_state(tmp_path, {"p": Parts(w=whole[3 * rank :][:3])}, rank, {"w": span})
    found = load_state(tmp_path, 0, 2, {"w": (Span(0, 6), torch.Size([2, 3]))})
    assert torch.equal(found["p"]["w"], whole.reshape(2, 3))


def test_a_gap_between_parts_is_damage(tmp_path):
    save_state(tmp_path, {"p": Parts(w=torch.zeros(2))}, 0, {"w": Span(0, 2)})
    save_state(tmp_path, {"p": Parts(w=torch.zeros(2))}, 1, {"w": Span(3, 2)})
    with pytest.raises(DamagedError, match=r"entries from 2 of .* are missing"):
        load_state(tmp_path, 0, 2, {"w": (Span(0, 5), torch.Size([5]))})
