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
        tokens: positions for which there is room.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        super().lazy_initialization(key_states, value_states)
        self._all = [self._empty(key_states), self._empty(value_states)]
        self.keys, self.values = (whole[:, :, :0] for whole in self._all)

    def _empty(self, states: torch.Tensor) -> torch.Tensor:
        examples, heads, _, size = states.shape
        return states.new_empty((examples, heads, self._tokens, size))

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for whole, new in zip(self._all, (key_states, value_states), strict=True):
            whole[:, :, start:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._all)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        held = self.keys.shape[2]
        chosen = [self.keys[indices], self.values[indices]]
        self._all = [self._empty(states) for states in chosen]
        for whole, states in zip(self._all, chosen, strict=True):
            whole[:, :, :held] = states
        self.keys, self.values = (whole[:, :, :held] for whole in self._all)


def roomy(config: Any, tokens: int) -> DynamicCache:
    """Return an empty cache for a model.

    Args:
        config: the model's.
        tokens: that will be appended at most.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        _Roomy(tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def fork(cache: DynamicCache) -> DynamicCache:
    """Return a cache that goes on from another, which must not grow until the new one is done with.

    What is there is shared, and so is the room.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked
