"""What a model has read of a batch of sequences, and reading on from there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cl_mofo.model import LanguageModel, keeps_logits

PADDING = 0.1
"""Share of padding in a row from which on prompts are read in another pass."""
WORTH_A_PASS = 256
"""Fewest tokens of a pass over prompts; on fewer, what a pass costs besides would weigh."""


class Context:
    """What the model has read of a batch: its cache, padding, and position.

    Args:
        language_model: the model.
        prompts: token ids, at least one each.
        room: ids that will follow at most; the last of them is not read.
        ahead: how many more are read at most that `forget` takes back.

    Attributes:
        forgets: whether positions that were read can be taken back.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        room: int,
        ahead: int = 0,
    ) -> None:
        from cl_mofo.evaluation.room import is_roomy, roomy

        self._module, device = language_model.module, language_model.device
        width = max(map(len, prompts))
        self._last = width + max(room, 1) - 2
        self._room = width + room + ahead
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.ones((len(prompts), self._room), dtype=bool)
        self._lengths = list(map(len, prompts))
        pads = [width - length for length in self._lengths]
        for row, (pad, prompt) in enumerate(zip(pads, prompts, strict=True)):
            ids[row, pad:], mask[row, :pad] = prompt, False
        self._prompts = torch.from_numpy(ids).to(device)
        padded = any(pads)
        self._mask = torch.from_numpy(mask).to(device) if padded else None
        self._gaps = torch.tensor(pads, device=device)[:, None] if padded else None
        self._cache = roomy(self._module.config, len(prompts), self._room)
        # Others may reckon a token's distance by its place in the cache, gaps and all.
        masked_by_us = getattr(self._module, "_supports_attention_backend", False)
        self.forgets = masked_by_us and is_roomy(self._cache)
        self._read = 0
        self._restricts = keeps_logits(self._module)

    def read_prompts(self) -> torch.Tensor:
        """Read the prompts; return the logits [rows, vocabulary] of what follows them.

        They are read in groups of similar lengths, so that little padding is computed on.
        """
        from cl_mofo.evaluation.room import hold, part

        width = self._prompts.shape[1]
        found = []
        for rows in alike(self._lengths):
            start = width - max(self._lengths[rows])
            cache = part(self._cache, rows, start)
            if cache is None:
                return self.read(self._prompts, keep=1)[:, -1]
            group = copy.copy(self)
            group._cache, group._read = cache, 0
            if self._mask is not None and self._gaps is not None:
                group._mask, group._gaps = self._mask[rows, start:], self._gaps[rows] - start
                if not group._gaps.any():
                    group._mask = None
            found.append(group.read(self._prompts[rows, start:], keep=1)[:, -1])
        hold(self._cache, width)
        self._read = width
        return torch.cat(found)

    def read(self, ids: torch.Tensor, keep: int = 0) -> torch.Tensor:
        """Read more; return the logits [rows, positions, vocabulary], if `keep` of the last few.

        Args:
            ids: [rows, positions]; what stands right of a row's end disturbs nothing before it.
            keep: how many positions are wanted.
        """
        if not self.fits(ids.shape[1]):
            self._close_gaps()
        start, end = self._read, self._read + ids.shape[1]
        inputs: dict[str, Any] = {"logits_to_keep": keep} if keep and self._restricts else {}
        if self._mask is not None and self._gaps is not None:
            positions = torch.arange(start, end, device=ids.device) - self._gaps
            positions.clamp_(0, self._last)  # what is beyond is forgotten, but must be embedded
            inputs |= {"attention_mask": self._mask[:, :end], "position_ids": positions}
        output = self._module(ids, past_key_values=self._cache, use_cache=True, **inputs)
        self._read = end
        logits: torch.Tensor = output.logits
        return logits

    def forget(self, counts: Sequence[int]) -> None:
        """Take back the last few positions of each row.

        What one row takes back and another does not is a gap: it is masked, and has no position.
        """
        from cl_mofo.evaluation.room import hold

        if not any(counts):
            return
        self._read -= min(counts)
        hold(self._cache, self._read)
        if min(counts) == max(counts):
            return
        gone = torch.tensor(counts, device=self._prompts.device)[:, None] - min(counts)
        if self._mask is None or self._gaps is None:
            self._mask = gone.new_ones((len(counts), self._room), dtype=torch.bool)
            self._gaps = torch.zeros_like(gone)
        place = torch.arange(self._room, device=gone.device)
        self._mask &= (place < self._read - gone) | (place >= self._read)
        self._gaps = self._gaps + gone

    def fits(self, tokens: int) -> bool:
        """Tell whether so many more tokens can be read without closing gaps."""
        return self._read + tokens <= self._room

    def _close_gaps(self) -> None:
        """Move what each row has read together, to the right."""
        from cl_mofo.evaluation.room import rearrange

        assert self._mask is not None
        assert self._gaps is not None
        spare = int(self._gaps.min())
        in_order = self._mask[:, : self._read].byte().argsort(dim=1, stable=True)
        rearrange(self._cache, in_order[:, spare:])
        self._read -= spare
        self._gaps = self._gaps - spare
        self._mask = torch.arange(self._room, device=self._gaps.device) >= self._gaps

    def fork(self) -> Context:
        """Return a context that reads on from here; this one waits until that is done with."""
        from cl_mofo.evaluation.room import fork

        forked = copy.copy(self)
        forked._cache = fork(self._cache)
        return forked

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows leave."""
        chosen = torch.tensor(rows, device=self._prompts.device)
        self._cache.batch_select_indices(chosen)
        if self._mask is not None and self._gaps is not None:
            self._mask, self._gaps = self._mask[chosen], self._gaps[chosen]


def alike(lengths: Sequence[int]) -> list[slice]:
    """Divide rows, the longest first, into groups that are read with little padding.

    Args:
        lengths: tokens of each row.
    """
    groups, start, tokens = [], 0, 0
    for row, length in enumerate(lengths):
        if tokens >= WORTH_A_PASS and length < (1 - PADDING) * lengths[start]:
            groups.append(slice(start, row))
            start, tokens = row, 0
        tokens += length
    return [*groups, slice(start, len(lengths))]
