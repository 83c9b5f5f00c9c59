"""Attention of a few new tokens over much that was read, for heads that share keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from cl_mofo.evaluation.lookahead import FARTHEST

_ELSEWHERE = ("softcap", "position_bias", "s_aux", "cache", "output_attentions")
"""What this leaves to transformers."""


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' "sdpa" does, but do not copy keys and values for each head.

    Several new tokens would have them copied, which for long texts takes longer than all else. The
    heads that share them are put side by side instead, as if they were tokens.

    Args:
        module: the layer.
        query: [rows, heads, positions, head size].
        key: [rows, heads or a divisor of them, read, head size].
        value: as `key`.
        attention_mask: [rows or 1, 1, positions, read], or None.
        dropout: share of weights dropped.
        scaling: of the scores; 1/sqrt(head size) if None.
        kwargs: what else the model says.

    Returns:
        [rows, positions, heads, head size], and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, positions, size = query.shape
    shared = heads // key.shape[1]
    others = dropout or any(kwargs.get(name) is not None for name in _ELSEWHERE)
    few = shared > 1 and 1 < positions <= FARTHEST
    if others or not few or attention_mask is None or attention_mask.shape[1] != 1:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return attended
    together = query.reshape(rows, key.shape[1], shared * positions, size)
    mask = attention_mask.repeat(1, 1, shared, 1)
    found = F.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(rows, heads, positions, -1).transpose(1, 2).contiguous(), None


@contextmanager
def grouped() -> Iterator[None]:
    """Let models that attend by transformers' "sdpa" attend by this for a while."""
    from transformers import AttentionInterface

    before = AttentionInterface()["sdpa"]
    AttentionInterface.register("sdpa", grouped_attention)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", before)
