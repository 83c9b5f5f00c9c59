"""Which entries move: held against a plain sort, on both ways the selection is computed."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_mofo.optim.selection import count, largest, largest_on_device

WAYS = [largest, largest_on_device]

# Zeros of both signs, the smallest subnormal, neighbours one bit apart, the extremes.
TRICKY = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.0, -1.0, math.nextafter(1.0, 2.0), 3e38, -math.inf]


def sorted_choice(values, k):
    """The k largest |value|, ties to the smallest index, by Python's stable sort of integers."""
    keys = np.abs(values.numpy()).view(f"i{values.element_size()}").tolist()
    return sorted(sorted(range(len(keys)), key=lambda i: -keys[i])[:k])


@pytest.mark.parametrize(
    ("fraction", "numel", "expected"),
    [
        (0.05, 100, 5),  # in exact arithmetic on the binary float: 6
        (0.07, 100, 7),  # in floats 0.07 * 100 is 7.000000000000001, so 8
        ("0.07", 100, 7),
        (Decimal("0.07"), 100, 7),
        (Fraction(7, 100), 100, 7),
        (Fraction(0.07), 100, 8),  # the binary float, when asked for: it is above 7/100
        ("1/3", 9, 3),
        (0.05, 101, 6),  # 5.05, up
        (1e-9, 10, 1),  # never none
        (1, 7, 7),
        (1.0, 7, 7),
        (0.05, 1, 1),
        (0.05, 0, 0),
        (0.05, 65_536_000, 3_276_800),
    ],
)
def test_count_is_the_ceiling_of_the_decimal_as_written(fraction, numel, expected):
    assert count(fraction, numel) == expected


@pytest.mark.parametrize("way", WAYS)
def test_ties_go_to_the_smallest_index(way):
    # Magnitudes 2 1 2 2 0 2: four tie for three places; -0.0 is as small as 0.0.
    values = torch.tensor([-2.0, 1.0, 2.0, 2.0, -0.0, -2.0])
    assert sorted(way(values, 3).tolist()) == [0, 2, 3]
    assert sorted(way(values, 5).tolist()) == [0, 1, 2, 3, 5]
    zeros = torch.tensor([0.0, -0.0, 0.0, -0.0])
    assert sorted(way(zeros, 2).tolist()) == [0, 1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_it_is_the_sort(way, dtype, data):
    number = st.sampled_from(TRICKY) | st.floats(width=32, allow_nan=False)
    values = torch.tensor(data.draw(st.lists(number, min_size=1, max_size=40)), dtype=dtype)
    k = data.draw(st.integers(0, values.numel()))
    chosen = way(values, k)
    assert chosen.dtype == torch.int64
    assert sorted(chosen.tolist()) == sorted_choice(values, k)


def large(kind):
    """Tensors long enough to be sampled, some of them so that the sample misleads."""
    n = 300_007  # no multiple of a chunk
    values = torch.randn(n, generator=torch.Generator().manual_seed(0))
    match kind:
        case "continuous":
            return values
        case "tied":
            return values.mul(2).round()
        case "mostly zero":  # an embedding of which few rows have been seen
            return values * (torch.arange(n) % 50 == 7)
        case "zero":
            return torch.zeros(n)
        case "equal":
            return torch.full((n,), -3.0)
        case "sample too high":  # all that is sampled is large
            values[::61] += 10
            return values
        case "sample too low":
            values[::61] = 0
            return values
        case "subnormal":
            return values * 1e-40
        case "sorted":
            return values.sort().values
    raise AssertionError(kind)


KINDS = [
    "continuous",
    "tied",
    "mostly zero",
    "zero",
    "equal",
    "sample too high",
    "sample too low",
    "subnormal",
    "sorted",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4_000, 15_001, 200_000, 300_006])
def test_large_tensors(kind, k):
    values = large(kind)
    expected = values.abs().argsort(descending=True, stable=True)[:k].sort().values
    for way in WAYS:
        assert torch.equal(way(values, k).sort().values, expected)


def test_float64_keeps_all_its_bits():
    # Apart only in the last bit, which float32 cannot tell.
    values = torch.ones(100_000, dtype=torch.float64)
    values[70_000] = math.nextafter(1.0, 2.0)
    for way in WAYS:
        assert way(values, 1).tolist() == [70_000]


def test_subnormals_count_even_where_the_processor_flushes_them():
    values = torch.zeros(100_000)
    values[90_000] = 1e-45
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert largest(values, 1).tolist() == [90_000]
    finally:
        torch.set_flush_denormal(False)
