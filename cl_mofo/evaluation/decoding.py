"""Generate answers token by token over the model's own cache.

The prompts of a batch go through the model once. The loss on the right answers is taken from there,
and from there answers are generated, several tokens at a time where they can be foretold. Rows
whose answers have ended leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.batches import IGNORED
from cl_mofo.data.tokenise import Encoder
from cl_mofo.evaluation.backend import Generated, Question, budget
from cl_mofo.evaluation.context import Context
from cl_mofo.evaluation.grouped import grouped
from cl_mofo.evaluation.lookahead import FARTHEST, Lookup, agreed, drafts, farthest
from cl_mofo.model import LanguageModel

LEAVE = 0.25
"""Share of a batch's rows that have ended when they leave it: leaving copies the others' cache.
They leave sooner if the room is used up."""
MOST_LOGITS = 1 << 26
"""Logits that are computed at once (256 MiB), but for one of each row."""


def fits(module: Any) -> bool:
    """Tell whether a model can be decoded here: transformers generates with it in the plain way.

    It is a decoder whose layers keep keys and values and nothing else, and whose class changes
    nothing of how transformers generates.
    """
    from transformers import DynamicCache, GenerationMixin

    from cl_mofo.evaluation.room import KNOWN

    own = ("generate", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
    if any(getattr(type(module), name, None) is not getattr(GenerationMixin, name) for name in own):
        return False
    takes = inspect.signature(module.forward).parameters.keys()
    if not takes >= {"attention_mask", "position_ids", "past_key_values", "use_cache"}:
        return False
    if module.config.is_encoder_decoder:
        return False
    layers = DynamicCache(config=module.config).layers
    return bool(layers) and all(type(layer) in KNOWN for layer in layers)


class Decoder:
    """The loop over a model that `fits`.

    A sampled token is the first at which the cumulative probability exceeds a uniform draw. Each
    question has draws of its own, so that no answer depends on which others it is generated with,
    and each token its own of them: a token that was foretold is kept if it is the one drawn.

    Args:
        language_model: in evaluation mode.
        encoder: whose answer budget holds.
        settings: how to decode.
    """

    def __init__(
        self, language_model: LanguageModel, encoder: Encoder, settings: EvaluationConfig
    ) -> None:
        self._language_model, self._encoder, self._settings = language_model, encoder, settings
        self._budget = budget(encoder)

    def generate(self, batch: Sequence[Question]) -> list[Generated]:
        """Answer questions, and measure the loss on their references where they have one."""
        with self._language_model.autocast(), grouped():
            prompts = [q.prompt for q in batch]
            ahead = farthest(self._budget)
            context = Context(self._language_model, prompts, self._budget, ahead)
            logits = context.read_prompts()
            losses: list[float] | None = None
            if batch[0].reference is not None:
                losses = _losses(context.fork(), logits, [q.reference or () for q in batch])
            rows = self._decode(context, logits, batch)
        return [
            Generated(row.ids, row.settled, losses[i] if losses else None)
            for i, row in enumerate(rows)
        ]

    def _decode(
        self, context: Context, logits: torch.Tensor, batch: Sequence[Question]
    ) -> list[_Row]:
        everyone = rows = [_Row(q, Lookup(q.prompt) if context.forgets else None) for q in batch]
        logits = logits[:, None]
        while True:
            useless = []
            for row, tokens in zip(rows, self._chosen(logits, rows).tolist(), strict=True):
                useful = 0 if row.ended else 1 + agreed(row.draft, tokens)
                self._say(row, tokens[:useful])
                useless.append(len(tokens) - useful)
            if context.forgets:
                context.forget(useless)
            going = [place for place, row in enumerate(rows) if not row.ended]
            if not going:
                return everyone
            most = min(farthest(self._budget), MOST_LOGITS // logits[:, -1].numel() - 1)
            many = len(going) <= (1 - LEAVE) * len(rows)
            if many or (len(going) < len(rows) and not context.fits(1 + most)):
                rows = [rows[place] for place in going]
                context.keep(going)
            logits = context.read(self._following(rows, max(0, most)).to(logits.device))

    def _say(self, row: _Row, tokens: Sequence[int]) -> None:
        for token in tokens:
            row.ids.append(token)
            if row.lookup:
                row.lookup.add(token)
            row.settled = token != self._encoder.eos and self._is_settled(row)
            spent = len(row.ids) >= self._budget
            row.ended = token == self._encoder.eos or row.settled or spent
            if row.ended:
                return

    def _following(self, rows: Sequence[_Row], most: int) -> torch.Tensor:
        """Draw up drafts; return the ids [rows, positions] to read, of which drafts are the end."""
        drawn_up = drafts(
            [None if row.ended else row.lookup for row in rows],
            [self._budget - len(row.ids) - 1 for row in rows],
            most,
        )
        ids = np.empty((len(rows), 1 + max(map(len, drawn_up))), dtype=np.int64)
        for place, (row, draft) in enumerate(zip(rows, drawn_up, strict=True)):
            row.draft = draft
            ids[place] = row.ids[-1]  # also where there is no draft
            ids[place, 1 : 1 + len(draft)] = draft
        return torch.from_numpy(ids)

    def _is_settled(self, row: _Row) -> bool:
        if row.question.settled is None:
            return False
        text = self._encoder.decode(row.ids, skip_special_tokens=self._settings.skip_special_tokens)
        # A character of several tokens that is not yet complete is no part of the text.
        return row.question.settled(text.rstrip("\ufffd"))

    def _chosen(self, logits: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
        """Return the tokens [rows, positions] that follow, wherever what was read is right."""
        if self._settings.decoding == "greedy":
            return logits.argmax(-1)
        width = logits.shape[1]
        drawn = np.stack([self._draws(row, width) for row in rows])
        draws = torch.from_numpy(drawn).to(logits.device)
        temperature, top_k = self._settings.temperature, self._settings.top_k
        return sampled(logits.flatten(0, 1), draws.flatten(), temperature, top_k).view(-1, width)

    def _draws(self, row: _Row, count: int) -> NDArray[np.float32]:
        """Return the draws of a row's next tokens; those beyond its budget are for nothing."""
        if row.draws is None:
            random = np.random.default_rng(row.question.seed)
            row.draws = random.random(self._budget + FARTHEST, np.float32)
        return row.draws[len(row.ids) : len(row.ids) + count]


@dataclass
class _Row:
    question: Question
    lookup: Lookup | None
    """None where nothing that was read can be taken back."""
    ids: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    """What was read ahead after the last of `ids`."""
    draws: NDArray[np.float32] | None = None
    ended: bool = False
    settled: bool = False


def sampled(
    logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_k: int | None
) -> torch.Tensor:
    """Return a token for each row, drawn from the distribution that transformers samples.

    Args:
        logits: [rows, vocabulary].
        draws: [rows], uniform in [0, 1), float32.
        temperature: above 0, by which logits are divided.
        top_k: among so many likeliest; None among all.
    """
    scores = logits.float() / temperature
    if top_k is not None:
        least = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    heights = scores.softmax(-1).double().cumsum(-1)
    wanted = draws.double()[:, None] * heights[:, -1:]
    # Of a broken model's NaNs none is reached; that it is broken its loss will tell.
    return torch.searchsorted(heights, wanted, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


def _losses(
    context: Context, logits: torch.Tensor, references: Sequence[Sequence[int]]
) -> list[float]:
    """Return each reference's loss in nats, summed over its ids.

    Args:
        context: in which they follow; it is read on.
        logits: [rows, vocabulary] of their first ids.
        references: ids, at least one each.
    """
    width = max(map(len, references))
    ids = np.full((len(references), width), IGNORED, dtype=np.int64)
    for row, reference in enumerate(references):
        ids[row, : len(reference)] = reference
    labels = torch.from_numpy(ids).to(logits.device)
    total = _cross_entropy(logits[:, None], labels[:, :1])
    columns = max(1, MOST_LOGITS // logits.numel())
    for start in range(0, width - 1, columns):
        end = min(start + columns, width - 1)
        following = context.read(labels[:, start:end].clamp(0))
        total += _cross_entropy(following, labels[:, start + 1 : end + 1])
    summed: list[float] = total.tolist()
    return summed


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    each = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return each.view(labels.shape).sum(1, dtype=torch.float64)
