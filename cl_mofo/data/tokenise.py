"""Turn a record into the tokens that are trained on, and generated tokens back into an answer.

What is trained is what inference sees: the prompt's ids are the same in both, the answer follows
them directly, and the end-of-sequence token ends it. Text in the data is only ever text: a literal
"</s>" in a record is not the end of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """The tokens of one record.

    Args:
        ids: prompt, answer and end-of-sequence ids.
        supervised: how many of the last ids are learned (the answer and the end of sequence).
    """

    ids: tuple[int, ...]
    supervised: int

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """Encode records for one model's tokenizer within a prompt and an answer budget.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token; its padding, template and
            truncation settings are not used, and it is not changed.
        prompt_tokens: most prompt ids kept, the last ones; a beginning-of-sequence id, which is put
            first if the tokenizer has one, counts.
        answer_tokens: most answer ids kept, the first ones; the end-of-sequence id always follows.
        joint: tokenise as TRACE does: prompt and answer as one text, cut on the left to the sum of
            both budgets, with beginning and end ids only where they fit, special tokens parsed.
    """

    def __init__(
        self, tokenizer: Any, prompt_tokens: int, answer_tokens: int, *, joint: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.joint = joint
        self.eos: int = tokenizer.eos_token_id
        self.bos: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text, without added tokens."""
        return self._ids([text])[0]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=not self.joint,
            verbose=False,
        )["input_ids"]
        return [list(one) for one in ids]

    def prompt(self, text: str) -> list[int]:
        """Return the ids a model is given before it answers."""
        return self.prompts([text])[0]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return what `prompt` does of each text; together they are faster."""
        return [self._cut(ids) for ids in self._ids(texts)]

    def _cut(self, ids: list[int]) -> list[int]:
        if self.joint:
            ids = ids[-self.prompt_tokens :]
            return ids if len(ids) >= self.prompt_tokens else self.bos + ids
        room = self.prompt_tokens - len(self.bos)
        return self.bos + (ids[-room:] if room > 0 else [])

    def encode(self, prompt: str, answer: str) -> Example:
        """Return the ids to train on."""
        return self.encode_all([prompt], [answer])[0]

    def encode_all(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Example]:
        """Return what `encode` does of each pair; together they are faster."""
        if self.joint:
            both = self._ids([p + a for p, a in zip(prompts, answers, strict=True)])
            return list(map(self._jointly, both, self._ids(answers)))
        return [
            _example(prompt, [*answer[: self.answer_tokens], self.eos])
            for prompt, answer in zip(self.prompts(prompts), self._ids(answers), strict=True)
        ]

    def _jointly(self, both: list[int], answer: list[int]) -> Example:
        limit = self.prompt_tokens + self.answer_tokens
        ids = self._closed(both, limit)
        if len(ids) < limit:
            ids = self.bos + ids
        supervised = len(self._closed(answer, limit))
        return Example(tuple(ids), min(supervised, len(ids)))

    def _closed(self, ids: list[int], limit: int) -> list[int]:
        ids = ids[-limit:]
        return [*ids, self.eos] if len(ids) < limit else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of generated ids, up to the first end of sequence."""
        ids = list(ids)
        if self.eos in ids:
            ids = ids[: ids.index(self.eos)]
        text = self.tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return str(text)


def _example(prompt: list[int], answer: list[int]) -> Example:
    return Example((*prompt, *answer), len(answer))
