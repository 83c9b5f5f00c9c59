"""What engines that spread weights have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from cl_mofo.engine.base import Copy, Engine, check_same

Moments = dict[str, Any]


class SpreadEngine(Engine):
    """An engine in which a rank holds parts: what it saves is by tensor, whole ones it gathers."""

    _copy: Copy

    @abstractmethod
    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight of the module by name, whole, one after another, on every rank."""

    @abstractmethod
    def _moments(self) -> dict[str, Moments]:
        """Return by name what the optimizer keeps of each trained tensor's part.

        Values are tensors of the part's shape, or one for the whole tensor, such as a counter.
        """

    @abstractmethod
    def _make_moments(self, moments: Mapping[str, Moments]) -> None:
        """Let the optimizer keep such values, which `_moments` then returns."""

    @abstractmethod
    def _written(self) -> None:
        """Hear that what `parameters` returns has been written to."""

    def whole(self) -> AbstractContextManager[Any]:
        """Give a copy of the module with whole weights: 4 bytes a weight on every rank."""
        return self._copy.filled(self._gathered())

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's parts of the weights and of the moments, by name."""
        return {
            "ranks": [self.ranks.rank, self.ranks.count],
            "model": self.parameters(),
            "optimizer": self._moments(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned on this rank, among as many.

        Raises:
            ValueError: it is of other parameters, another rank, or another number of ranks.
        """
        here = [self.ranks.rank, self.ranks.count]
        if state.get("ranks") != here:
            raise ValueError(f"the state is of [rank, ranks] {state.get('ranks')}, not {here}")
        check_same(self.parameters(), state["model"])
        self.optimizer.state.clear()
        self._make_moments(state["optimizer"])
        with torch.no_grad():
            for name, part in self.parameters().items():
                part.copy_(state["model"][name])
            for name, moments in self._moments().items():
                for key, value in moments.items():
                    value.copy_(state["optimizer"][name][key])
        self._written()
