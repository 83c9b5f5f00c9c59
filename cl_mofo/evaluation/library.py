"""Generate by transformers' own `generate`: state-space models, encoder-decoders, own code."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.tokenise import Encoder
from cl_mofo.evaluation.backend import Generated, Question, budget
from cl_mofo.model import LanguageModel


class Library:
    """transformers' `generate`, a batch at a time; prompts are padded on the left.

    It takes the draws of a whole batch from its first question's seed.

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
