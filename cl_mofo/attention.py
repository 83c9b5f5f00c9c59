"""Attention within each of the examples that a row holds, by transformers' attention interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
"""Most entries of a head that flash attention takes."""


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
    varlen = _varlen_attention()
    if varlen and query.is_cuda and not dropout:
        dtype = _autocast_dtype(query)
        if dtype in FLASH_DTYPES and query.shape[-1] == value.shape[-1] <= FLASH_HEAD:
            return _flash(varlen, query, key, value, documents, scaling, dtype), None
    lengths = list(documents.lengths)
    parts = zip(*(torch.split_with_sizes(t, lengths, 2) for t in (query, key, value)), strict=True)
    grouped = query.shape[1] != key.shape[1]
    attended = [
        F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        ).transpose(1, 2)
        for q, k, v in parts
    ]
    return torch.cat(attended, dim=1), None


_CHANGES_SCORES = ("softcap", "position_bias", "s_aux", "head_mask", "cache")


def _flash(
    varlen: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scaling: float | None,
    dtype: torch.dtype,
) -> Tensor:
    rows = [t.to(dtype)[0].transpose(0, 1) for t in (query, key, value)]
    starts, longest = documents.starts, max(documents.lengths)
    attended: Tensor = varlen(
        *rows,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[None]


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return what scaled_dot_product_attention would compute in, which autocast knows."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def _varlen_attention() -> Any:
    """Return torch's flash attention over sequences of several lengths, if this torch has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


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
