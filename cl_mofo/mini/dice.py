"""Draws that are the same on every machine and every Python version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A seeded source of choices, built on `random.Random.random` alone.

    Python promises that method's sequence for a seed; how `choice`, `sample` and `shuffle` turn it
    into draws has changed between versions, so they are spelled out here.

    Args:
        seed: any text; seeding from text hashes it with SHA-512, whatever PYTHONHASHSEED is.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._random.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """Return one of `items`."""
        return items[self.number(0, len(items) - 1)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return `items` in a random order (Fisher-Yates)."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.number(0, last)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """Return `count` different ones of `items`, in a random order."""
        return self.shuffled(items)[:count]
