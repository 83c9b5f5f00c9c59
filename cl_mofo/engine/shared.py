"""What engines that spread weights have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from cl_mofo.engine.base import Copy, Engine


class SpreadEngine(Engine):
    """An engine in which a rank holds parts, and gathers whole tensors."""

    _copy: Copy

    @abstractmethod
    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight of the module by name, whole, one after another, on every rank."""

    @property
    def spread(self) -> bool:
        """Whether each rank holds its own part of a tensor: it does."""
        return True

    def whole(self) -> AbstractContextManager[Any]:
        """Give a copy of the module with whole weights: 4 bytes a weight on every rank."""
        return self._copy.filled(self._gathered())
