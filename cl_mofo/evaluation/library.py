"""Generate by transformers' own `generate`: state-space models, encoder-decoders, own code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.tokenise import Encoder
from cl_mofo.evaluation.backend import Generated, Question, budget
from cl_mofo.model import LanguageModel


class Library:
    """transformers' `generate`, a batch at a time; prompts are padded on the left.

    What a model that carries a state from token to token makes of padding differs from model to
    model, so it is given prompts of one length at a time. A batch's draws are from the seed of its
    first question.

    Args:
        language_model: in evaluation mode.
        encoder: whose answer budget holds.
        settings: how to decode.
    """

    def __init__(
        self, language_model: LanguageModel, encoder: Encoder, settings: EvaluationConfig
    ) -> None:
        from transformers import GenerationConfig

        sampling = settings.decoding == "sample"
        self._language_model, self._eos = language_model, encoder.eos
        self._config = GenerationConfig(
            max_new_tokens=budget(encoder),
            do_sample=sampling,
            temperature=settings.temperature if sampling else None,
            top_k=(settings.top_k or 0) if sampling else None,  # None would mean transformers' 50
            eos_token_id=encoder.eos,
            pad_token_id=encoder.eos,
        )

    def generate(self, batch: Sequence[Question]) -> list[Generated]:
        """Answer questions; no answer ends before its end."""
        if not getattr(self._language_model.module, "_is_stateful", False):
            return self._together(batch)
        alike = (list(same) for _, same in groupby(batch, key=lambda q: len(q.prompt)))
        return [answer for same in alike for answer in self._together(same)]

    def _together(self, batch: Sequence[Question]) -> list[Generated]:
        torch.manual_seed(batch[0].seed)
        width = max(len(question.prompt) for question in batch)
        rows = [[self._eos] * (width - len(q.prompt)) + [*q.prompt] for q in batch]
        mask = [[0] * (width - len(q.prompt)) + [1] * len(q.prompt) for q in batch]
        device = self._language_model.device
        with self._language_model.autocast():
            output = self._language_model.module.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=self._config,
            )
        return [Generated(self._ended(ids)) for ids in output[:, width:].tolist()]

    def _ended(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self._eos) + 1] if self._eos in ids else ids
