"""A random share of the training rows: how many, which, and that nothing else is touched."""

import json
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_mofo.config import DataConfig
from cl_mofo.data.records import Rows
from cl_mofo.data.share import drawn
from cl_mofo.data.suites import load_suite
from cl_mofo.errors import UserError
from cl_mofo.resolve import resolve

SHARES = st.decimals("0.01", "1", places=2)


def rows_of(count):
    return [{"prompt": f"{i}?", "answer": f"{i}"} for i in range(count)]


@given(st.integers(1, 300), SHARES, SHARES, st.integers(0, 2**32 - 1))
def test_so_many_are_drawn_each_once_in_their_order_and_a_larger_share_has_the_smaller(
    count, one, two, seed
):
    rows = rows_of(count)
    small, large = (drawn(rows, float(share), seed, "FOMC") for share in sorted((one, two)))
    assert len(small) == math.ceil(min(one, two) * count)  # the decimals themselves
    assert [rows.index(row) for row in small] == sorted({rows.index(row) for row in small})
    assert [row for row in large if row in small] == small
    assert small == drawn(rows, float(min(one, two)), seed, "FOMC")


def test_every_row_is_drawn_equally_often():
    counts = dict.fromkeys(range(10), 0)
    for seed in range(1000):
        for row in drawn(rows_of(10), 0.3, seed, "FOMC"):
            counts[int(row["answer"])] += 1
    deviation = math.sqrt(1000 * 0.3 * 0.7)
    assert all(abs(count - 300) < 4 * deviation for count in counts.values())


def test_other_seeds_and_other_names_draw_others():
    draws = [drawn(rows_of(100), 0.1, seed, name) for seed in (0, 1) for name in ("FOMC", "Py150")]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])
    assert drawn(draws[0], None, 0, "FOMC") is draws[0]
    assert drawn(draws[0], 1.0, 0, "FOMC") is draws[0]


@pytest.fixture
def folder(tmp_path):
    for task in ("FOMC", "Py150", "Lima"):
        (tmp_path / task).mkdir()
        for split in ("train", "eval", "test"):
            (tmp_path / task / f"{split}.json").write_text(json.dumps(rows_of(40)))
    return tmp_path


def test_training_rows_are_drawn_and_stay_in_their_file(folder):
    def loaded(tasks, **settings):
        return load_suite(DataConfig(path=str(folder), **settings), tasks)

    whole, part = loaded(["FOMC", "Py150"]), loaded(["FOMC", "Py150"], train_share=0.1)
    rows = part.records["FOMC"]["train"]
    assert isinstance(rows, Rows)
    assert rows == drawn(rows_of(40), 0.1, 0, "FOMC")
    assert rows != rows_of(40)[:4]
    assert len(part.auxiliary) == 4
    for split in ("eval", "test"):
        assert part.records["FOMC"][split] == rows_of(40)
    assert part.hashes == whole.hashes
    assert loaded(["FOMC"], train_share=0.1).records["FOMC"]["train"] == rows
    assert loaded(["FOMC"], train_share=0.1, train_limit=3).records["FOMC"]["train"] == rows[:3]
    other = loaded(["FOMC"], train_share=0.1, share_seed=1).records["FOMC"]["train"]
    assert len(other) == 4
    assert other != rows


@pytest.mark.parametrize("share", [0, -0.5, 1.01, True, "a tenth", math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match=r"recipe key data\.train_share"):
        resolve({"data": {"train_share": share}})


def test_a_share_is_counted_on_its_decimal():
    assert Decimal("0.07") * 100 == 7  # where 0.07 * 100 is 7.000000000000001
    assert len(drawn(rows_of(100), 0.07, 0, "FOMC")) == 7
