"""Examples survive as tensors, on disk too."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_mofo.checkpoint import load_state, save_state
from cl_mofo.data.examples import pack, unpack
from cl_mofo.data.tokenise import Example


@st.composite
def example(draw):
    ids = draw(st.lists(st.integers(0, 200_000), max_size=6))
    return Example(tuple(ids), draw(st.integers(0, len(ids))))


@given(st.lists(example(), max_size=5))
def test_what_is_packed_comes_back(examples):
    assert unpack(pack(examples)) == examples


def test_the_flat_form_is_ids_lengths_and_counts():
    packed = pack([Example((5, 6, 7), 2), Example((8,), 1)])
    assert {name: tensor.tolist() for name, tensor in packed.items()} == {
        "ids": [5, 6, 7, 8],
        "lengths": [3, 1],
        "supervised": [2, 1],
    }
    assert {tensor.dtype for tensor in packed.values()} == {torch.int32}


@pytest.mark.parametrize("examples", [[], [Example((1, 2), 1)]])
def test_packed_examples_survive_a_checkpoint(tmp_path, examples):
    save_state(tmp_path, {"buffer": pack(examples)})
    assert unpack(load_state(tmp_path)["buffer"]) == examples


@pytest.mark.parametrize("name", ["ids", "lengths", "supervised"])
def test_a_state_cut_short_is_refused(name):
    packed = pack([Example((5, 6, 7), 2), Example((8,), 1)])
    packed[name] = packed[name][:-1]
    with pytest.raises(ValueError, match="packed examples"):
        unpack(packed)
