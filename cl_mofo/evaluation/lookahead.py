"""Tokens that can be foretold, since what they follow was followed by them before.

Answers copy from prompts, and a model that does not come to an end says the same over and over. A
pass over several tokens costs hardly more than one over a single token, and tells of each whether
it is the one that the model would have chosen; so answers stay what they are, but by rounding
(prompt lookup decoding, a form of speculative decoding: Leviathan et al., ICML 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CONTEXT = 3
"""Tokens after which the next one is looked up."""
PASS = 16
"""Tokens whose computation costs as much as what a pass costs however few it has."""
FARTHEST = 16
"""Most tokens of a row in a pass, the one that is known included."""


class Lookup:
    """A sequence that grows, and what followed its latest tokens when they last stood there.

    Args:
        ids: its beginning.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.streak = 0
        """How many tokens in a row, up to the latest, were foretold. As many more are expected."""
        for token in ids:
            self._append(token)

    def add(self, token: int) -> None:
        """Grow by a token."""
        self.streak = self.streak + 1 if self.foretell(1) == [token] else 0
        self._append(token)

    def _append(self, token: int) -> None:
        if len(self._ids) >= CONTEXT:
            self._after[tuple(self._ids[-CONTEXT:])] = len(self._ids)
        self._ids.append(token)

    def foretell(self, most: int) -> list[int]:
        """Return up to so many tokens that would follow; what repeats itself goes on to."""
        start = self._after.get(tuple(self._ids[-CONTEXT:]))
        if start is None:
            return []
        period = len(self._ids) - start
        return [self._ids[start + i % period] for i in range(most)]


def farthest(budget: int) -> int:
    """Return how many tokens are read ahead at most of an answer of so many."""
    return min(FARTHEST, budget) - 1


def drafts(rows: Sequence[Lookup | None], rooms: Sequence[int], most: int) -> list[list[int]]:
    """Return what to read ahead of each row: as much as makes most tokens for a pass's cost.

    Args:
        rows: of a batch; None for one that has ended.
        rooms: how many tokens may be read ahead of each.
        most: of any.
    """
    expected = [min(row.streak, room) if row else 0 for row, room in zip(rows, rooms, strict=True)]

    if not any(expected):
        return [[] for _ in rows]

    def tokens_for_cost(ahead: int) -> float:
        gained = sum(1 + min(each, ahead) for each in expected)
        return gained / (PASS + len(rows) * (1 + ahead))

    ahead = max(range(most + 1), key=tokens_for_cost)
    return [
        row.foretell(min(each, ahead)) if row else []
        for row, each in zip(rows, expected, strict=True)
    ]


def agreed(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """Return how many tokens of a draft are those that were chosen, up to the first that is not."""
    pairs = enumerate(zip(draft, chosen, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(draft), len(chosen)))
