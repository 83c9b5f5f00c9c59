"""A task's stages: how many steps they take, and which examples meet in a batch."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_mofo.data.stages import Stage, schedule_of, stage_of
from cl_mofo.data.tokenise import Example


def rows(count, start=0):
    return [Example((start + i, 0), 1) for i in range(count)]


def flat(batches):
    return [example.ids[0] for batch in batches for example in batch]


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_sees_each_example_once(count, batch_size, epochs, seed):
    stage = Stage("task", rows(count), epochs)
    batches = stage.batches(batch_size, (seed, 0))
    assert sorted(flat(batches)) == list(range(count))
    assert stage.steps(batch_size) == epochs * len(batches)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


@given(
    own=st.integers(1, 20),
    old=st.integers(1, 20),
    batch_size=st.integers(2, 8),
    data=st.data(),
    grouped=st.booleans(),
)
def test_every_batch_takes_its_number_from_memory(own, old, batch_size, data, grouped):
    taken = data.draw(st.integers(1, batch_size - 1))
    stage = Stage("task", rows(own), 3, memory=rows(old, start=100), from_memory=taken)
    batches = stage.batches(batch_size, (7, 1), group_by_length=grouped)
    assert len(batches) == math.ceil(own / (batch_size - taken))
    assert stage.steps(batch_size) == 3 * len(batches)
    assert all(sum(i >= 100 for i in flat([batch])) == taken for batch in batches)
    counts = Counter(flat(batches))
    assert all(counts[i] == 1 for i in range(own))
    # Drawn equally often, up to one: k of n rows, taken t times in all.
    times = [counts[100 + i] for i in range(old)]
    assert sum(times) == taken * len(batches)
    assert max(times) - min(times) <= 1


def test_the_seed_determines_the_draw():
    stage = Stage("task", rows(12), 1, memory=rows(12, start=100), from_memory=2)
    draws = [flat(stage.batches(4, seed)) for seed in [(1, 0, 0), (1, 0, 0), (1, 0, 1), (2, 0, 0)]]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != draws[3]


def test_memory_is_not_drawn_in_the_order_of_the_task():
    # One seed serves both draws of an epoch; were they one stream, row i would meet old row i.
    stage = Stage("task", rows(40), 1, memory=rows(40, start=100), from_memory=1)
    pairs = [(batch[0].ids[0], batch[1].ids[0] - 100) for batch in stage.batches(2, (3,))]
    assert sum(own == old for own, old in pairs) < 10


def test_without_memory_no_place_is_kept_for_it():
    stage = Stage("task", rows(6), 1, memory=(), from_memory=3)
    assert stage.steps(4) == 2
    assert [len(batch) for batch in stage.batches(4, (0,))] == [4, 2]


@pytest.mark.parametrize(
    ("epoch", "name"), [(0, "task"), (1, "task"), (2, "replay"), (3, "replay")]
)
def test_an_epoch_belongs_to_a_stage(epoch, name):
    stages = [Stage("task", rows(1), 2), Stage("replay", rows(1), 1)]
    assert stage_of(stages, epoch).name == name


def test_a_schedule_spans_the_stages_up_to_the_next_that_restarts_it():
    one = Stage("task", rows(8), epochs=2)  # two steps an epoch, in batches of four
    spanning, restarting = Stage("more", rows(8), 1), Stage("more", rows(8), 1, restart=True)
    assert [schedule_of([one, spanning], e, 4) for e in range(3)] == [(0, 6)] * 3
    assert [schedule_of([one, restarting], e, 4) for e in range(3)] == [(0, 4), (0, 4), (4, 2)]
    both = [one, restarting, spanning]
    assert [schedule_of(both, e, 4) for e in range(4)] == [(0, 4), (0, 4), (4, 4), (4, 4)]
