"""A key-value cache with room for what is to come."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

KNOWN = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers that `roomy` and `fork` can deal with."""


class _Roomy(DynamicLayer):
    """Keys and values of a layer; appending copies nothing of what is there.

    transformers' own layer is concatenated anew for every token: on a CPU that takes as long as
    reading the weights of a small model.

    Args:
        rows: sequences.
        tokens: positions for which there is room.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        super().__init__()
        self._rows, self._tokens = rows, tokens

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        super().lazy_initialization(key_states, value_states)
        # What is masked must still be a number.
        self._all = [
            states.new_zeros((self._rows, states.shape[1], self._tokens, states.shape[3]))
            for states in (key_states, value_states)
        ]
        self.hold(0)

    def hold(self, tokens: int) -> None:
        """Take so many positions as read."""
        self.keys, self.values = (whole[:, :, :tokens] for whole in self._all)

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for whole, new in zip(self._all, (key_states, value_states), strict=True):
            whole[:, :, start:end] = new
        self.hold(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        held = self.keys.shape[2]
        shape = (len(indices), self.keys.shape[1], self._tokens)
        chosen = [whole.new_empty((*shape, whole.shape[3])) for whole in self._all]
        for whole, new in zip(self._all, chosen, strict=True):
            new[:, :, :held] = whole[indices, :, :held]
        self._all = chosen
        self.hold(held)

    def rearrange(self, places: torch.Tensor) -> None:
        """Hold of each row what stands in these places [rows, tokens], in this order."""
        for whole in self._all:
            index = places[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3])
            whole[:, :, : places.shape[1]] = whole.gather(2, index)
        self.hold(places.shape[1])


class _Part(_Roomy):
    """Some rows of a layer, from a position on."""

    def __init__(self, layer: _Roomy, rows: slice, start: int) -> None:
        super().__init__(0, 0)
        self._layer, self._chosen, self._start = layer, rows, start

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        super().lazy_initialization(key_states, value_states)
        if not self._layer.is_initialized:
            self._layer.lazy_initialization(key_states, value_states)
        self._all = [whole[self._chosen, :, self._start :] for whole in self._layer._all]
        self.hold(0)


def roomy(config: Any, rows: int, tokens: int) -> DynamicCache:
    """Return an empty cache for a model.

    Args:
        config: the model's.
        rows: sequences.
        tokens: that will be appended at most.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        _Roomy(rows, tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def is_roomy(cache: DynamicCache) -> bool:
    """Tell whether all layers have room, none a window: then any part of it can be given up."""
    return all(isinstance(layer, _Roomy) for layer in cache.layers)


def part(cache: DynamicCache, rows: slice, start: int) -> DynamicCache | None:
    """Return a cache that is some rows of another from a position on; None if it has no such."""
    if not is_roomy(cache):
        return None
    chosen = copy.copy(cache)
    chosen.layers = [_Part(layer, rows, start) for layer in cache.layers]
    return chosen


def rearrange(cache: DynamicCache, places: torch.Tensor) -> None:
    """Hold of each row what stands in these places [rows, tokens], in this order."""
    for layer in cache.layers:
        layer.rearrange(places)


def hold(cache: DynamicCache, tokens: int) -> None:
    """Take so many positions of a cache as read, by way of its parts."""
    for layer in cache.layers:
        layer.hold(tokens)


def fork(cache: DynamicCache) -> DynamicCache:
    """Return a cache that goes on from another, which must not grow until the new one is done with.

    What is there is shared, and so is the room.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked
