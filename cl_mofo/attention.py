"""Attention within each of the examples that a row holds, by transformers' attention interface."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cl_mofo.data.batches import Documents

NAME = "cl_mofo_documents"
"""Under which the interface knows it; transformers makes no mask for a name that is not its own."""
FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_HEAD = 256
"""Most entries of a head that flash attention takes; it takes multiples of 8."""
FLASH_DEVICE = (8, 0)
"""Least compute capability of the GPUs that flash attention is for."""


def document_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each document: no token sees another's, and nothing is masked.

    Args:
        module: the layer, which says whether it is causal.
        query: [1, heads, length, head size].
        key: [1, heads or a divisor of them, length, head size].
        value: as `key`.
        attention_mask: None; any other is refused.
        dropout: share of weights dropped.
        scaling: of the scores; 1/sqrt(head size) if None.
        documents: of the row.
        kwargs: what else the model says. What would change the scores is refused.

    Returns:
        [1, length, heads, head size], and no weights.

    Raises:
        NotImplementedError: this attention is another one.
    """
    named = {"a mask": attention_mask} | {k: kwargs.get(k) for k in _CHANGES_SCORES}
    for name, given in named.items():
        if given is not None:
            raise NotImplementedError(f"its attention takes {name}")
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        raise NotImplementedError("its attention is not causal")
    if documents is None:
        raise NotImplementedError("its layers do not pass on what they are given")
    dtype = _autocast_dtype(query)
    if not dropout and dtype in FLASH_DTYPES and _flash_takes(query, value):
        attended_at_once = _flash(query, key, value, documents, scaling, dtype)
        if attended_at_once is not None:
            return attended_at_once, None
    rows, device = (query, key, value), query.device.type
    if device == "cpu" and dtype in FLASH_DTYPES:  # torch's backward pass is up to 4 times slower
        rows = (query.float(), key.float(), value.float())
    lengths = list(documents.lengths)
    grouped = query.shape[1] != key.shape[1]
    with torch.autocast(device, enabled=torch.is_autocast_enabled(device) and device != "cpu"):
        parts = zip(*(torch.split_with_sizes(t, lengths, 2) for t in rows), strict=True)
        attended = [
            F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
            ).transpose(1, 2)
            for q, k, v in parts
        ]
    return torch.cat(attended, dim=1).to(dtype), None


_CHANGES_SCORES = ("softcap", "position_bias", "s_aux", "head_mask", "cache")


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scaling: float | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """Attend to all documents at once, or return None where this torch cannot."""
    varlen, takes = _varlen_attention()
    options: dict[str, Any] = {}
    if "window_size" in takes:
        options["window_size"] = (-1, 0)
    elif "is_causal" in takes:  # until torch 2.10
        options["is_causal"] = True
    else:
        return None
    if "scale" in takes:
        options["scale"] = scaling
    elif scaling is not None and not math.isclose(scaling, query.shape[-1] ** -0.5):
        return None
    rows = [t.to(dtype)[0].transpose(0, 1) for t in (query, key, value)]
    if (heads := query.shape[1]) != key.shape[1]:
        if "enable_gqa" in takes:
            options["enable_gqa"] = True
        else:
            rows[1:] = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in rows[1:])
    starts, longest = documents.starts, max(documents.lengths)
    attended: Tensor = varlen(*rows, starts, starts, longest, longest, **options)
    return attended[None]


def _flash_takes(query: Tensor, value: Tensor) -> bool:
    """Tell whether flash attention is for heads of these sizes, and for their device."""
    size = query.shape[-1]
    fits = size == value.shape[-1] and size <= FLASH_HEAD and size % 8 == 0
    return fits and query.is_cuda and torch.cuda.get_device_capability(query.device) >= FLASH_DEVICE


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return what scaled_dot_product_attention would compute in, which autocast knows."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


@functools.cache
def _varlen_attention() -> tuple[Any, frozenset[str]]:
    """Return torch's flash attention over several lengths, and what it takes: nothing if absent."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, frozenset()
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


@contextmanager
def within_documents(module: Any) -> Iterator[None]:
    """Let a model of transformers' attend within documents, in forward and backward passes.

    What it generates with, and what is saved of its configuration, is as before afterwards.

    Args:
        module: the model; its forward passes then need the argument `documents`.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, document_attention)
    configs = {id(c): c for part in module.modules() if (c := _attending(part)) is not None}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def _attending(part: Any) -> Any:
    config = getattr(part, "config", None)
    return config if hasattr(config, "_attn_implementation") else None
