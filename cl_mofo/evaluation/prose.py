"""A model's loss on prose that no task is about: what it keeps of what it knew before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from cl_mofo.errors import TrainingError, UserError
from cl_mofo.evaluation.losses import evaluating
from cl_mofo.memory import explained
from cl_mofo.model import LanguageModel, summed_loss

if TYPE_CHECKING:
    from cl_mofo.memory import Shortage

WINDOW = 512
"""Tokens that are read together, each with those before it in the same window."""


def prose_tokens(language_model: LanguageModel, text: str, most: int) -> list[int]:
    """Return the first `most` tokens of a text, or all it has.

    Raises:
        UserError: there are fewer than two, so that none follows another.
    """
    found = language_model.tokenizer(text, add_special_tokens=False, verbose=False)
    tokens: list[int] = found["input_ids"][:most]
    if len(tokens) < 2:
        raise UserError(
            f"recipe key data.prose: the text has {len(tokens)} tokens, and a loss needs 2 or more"
        )
    return tokens


def prose_loss(language_model: LanguageModel, tokens: list[int], window: int = WINDOW) -> float:
    """Return the mean loss per token, in nats; its exponential is the perplexity.

    Args:
        language_model: as it answers.
        tokens: of the text, at least 2.
        window: most tokens of a pass, at least 2; of a model with fewer positions, those. The
            first of each pass is given, and not predicted.

    Raises:
        TrainingError: the loss is not finite.
    """
    positions = getattr(language_model.module.config, "max_position_embeddings", None)
    window = min(window, positions or window)
    total, count = 0.0, 0
    with evaluating(language_model), explained("the loss on prose is measured", _no_advice):
        for start in range(0, len(tokens) - 1, window):
            part = tokens[start : start + window]
            ids = torch.tensor([part], device=language_model.device)
            with language_model.autocast():
                logits = language_model.module(input_ids=ids, use_cache=False).logits
            total += summed_loss(logits[:, :-1], ids[:, 1:]).item()
            count += len(part) - 1
    if not math.isfinite(total):
        raise TrainingError(
            f"the loss on prose is {total}: the model is broken. Lower optimizer.lr"
        )
    return total / count


def _no_advice(missing: Shortage) -> list[str]:
    return []
