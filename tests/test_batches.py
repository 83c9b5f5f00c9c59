"""Order, batches and tensors."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_mofo.data.batches import IGNORED, collate, epoch_order, pack
from cl_mofo.data.tokenise import Example

EXAMPLES = [Example((9, 5, 6, 2), 2), Example((9, 7, 2), 2), Example((9, 5, 5, 5, 2), 1)]


def test_padding_is_right_and_labels_are_masked_by_position():
    # The pad id, 2, is also the end of sequence: only its position tells them apart.
    batch = collate(EXAMPLES[:2], pad=2)
    assert batch.input_ids.tolist() == [[9, 5, 6, 2], [9, 7, 2, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 6, 2], [IGNORED, 7, 2, IGNORED]]
    assert (batch.tokens, batch.supervised, batch.first) == (7, 4, 1)
    assert batch.masked


def test_a_label_without_a_position_before_it_is_not_learned():
    batch = collate([Example((4, 2), 2)], pad=0)
    assert batch.labels.tolist() == [[IGNORED, 2]]
    assert batch.supervised == 1


def test_a_batch_moves_whole():
    moved = collate(EXAMPLES, pad=0).to(torch.device("meta"))
    assert moved.input_ids.is_meta
    assert moved.labels.is_meta
    assert moved.supervised == 5


def test_the_host_waits_for_no_copy_to_a_gpu(monkeypatch):
    pinned, sent = [], []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    def send(tensor, device, *, non_blocking=False):
        assert non_blocking
        assert device.type == "cuda"
        sent.append(tensor)
        return tensor

    packed, padded = pack(EXAMPLES), collate(EXAMPLES, pad=0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", send)
    # Ids and labels; of packed examples where they lie, of padded ones the mask.
    for batch, tensors in ((packed, 5), (padded, 3), (replace(padded, masked=False), 2)):
        pinned.clear(), sent.clear()
        there = batch.to(torch.device("cuda"))
        assert list(map(id, sent)) == list(map(id, pinned))
        assert len(sent) == tensors
        assert there.labels.equal(batch.labels)
        assert (there.attention_mask is not batch.attention_mask) == batch.masked


sizes = st.integers(1, 60)


@given(n=sizes, batch=sizes, seed=st.integers(0, 2**32), grouped=st.booleans())
def test_an_epoch_is_every_index_once(n, batch, seed, grouped):
    batches = epoch_order([i % 7 + 1 for i in range(n)], batch, (seed,), group_by_length=grouped)
    assert sorted(i for part in batches for i in part) == list(range(n))
    assert sorted(map(len, batches), reverse=True)[:-1] == [batch] * (len(batches) - 1)


def test_order_depends_on_the_seed_the_task_and_the_epoch_and_nothing_else():
    lengths = [1] * 50
    draw = epoch_order(lengths, 8, (42, 0, 0))
    torch.manual_seed(7)
    assert epoch_order(lengths, 8, (42, 0, 0)) == draw
    assert all(epoch_order(lengths, 8, key) != draw for key in [(43, 0, 0), (42, 1, 0), (42, 0, 1)])


def test_grouping_by_length_makes_batches_alike():
    lengths = list(range(1, 101))
    spread = [
        sum(max(lengths[i] for i in part) - min(lengths[i] for i in part) for part in batches)
        for batches in (
            epoch_order(lengths, 10, (0,), group_by_length=True),
            epoch_order(lengths, 10, (0,)),
        )
    ]
    assert spread[0] == 10 * 9  # ten runs of ten neighbours
    assert spread[1] > 5 * spread[0]
