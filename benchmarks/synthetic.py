"""Llamas of random weights, and texts of random words whose lengths are like TRACE's.

Time and memory depend on shapes and lengths, not on what is said: so a machine without weights or
data can measure both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from cl_mofo.compat import repair_torchvision
from cl_mofo.data.records import Record, Splits
from cl_mofo.model import LanguageModel

DECILES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "C-STANCE": ((150, 184, 196, 213, 236, 265, 290, 329, 356, 396, 468), (2,)),
    "FOMC": ((48, 61, 66, 70, 74, 77, 81, 86, 93, 101, 200), (2,)),
    "MeetingBank": (
        (220, 341, 557, 859, 1024, 1024, 1024, 1024, 1024, 1024, 1024),
        (30, 39, 44, 52, 62, 71, 94, 112, 140, 195, 954),
    ),
    "Py150": (
        (10, 29, 55, 94, 173, 255, 423, 673, 1024, 1024, 1024),
        (2, 4, 7, 9, 9, 11, 13, 16, 19, 22, 61),
    ),
    "ScienceQA": (
        (39, 52, 56, 61, 67, 73, 79, 87, 98, 133, 217),
        (3, 103, 123, 140, 153, 185, 201, 233, 296, 379, 864),
    ),
    "NumGLUE-cm": (
        (33, 38, 41, 44, 46, 48, 51, 53, 60, 67, 107),
        (2, 2, 2, 3, 3, 3, 3, 3, 4, 5, 19),
    ),
    "NumGLUE-ds": (
        (21, 25, 26, 28, 36, 39, 41, 43, 49, 54, 74),
        (2, 2, 2, 2, 2, 3, 3, 4, 4, 6, 6),
    ),
    "20Minuten": (
        (163, 411, 545, 636, 739, 861, 950, 1024, 1024, 1024, 1024),
        (33, 67, 77, 85, 91, 98, 107, 116, 130, 147, 262),
    ),
}
"""The deciles of a task's prompts and answers in tokens, the end included: of the training split of
TRACE's 500-example variant with SmolLM2's tokenizer, prompts cut at 1024."""

SHAPES = {
    "1.1b": (2048, 22, 32, 4, 5632, 32_000),
    "135m": (576, 30, 9, 3, 1536, 49_152),
    "small": (128, 4, 4, 2, 384, 4096),
    "tiny": (64, 2, 4, 2, 128, 512),
}
"""Hidden size, layers, heads, key-value heads, MLP, vocabulary: TinyLlama's, SmolLM2's, toys'."""


def tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer whose words are the numbers below `vocabulary`; the first ends a text."""
    repair_torchvision()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 0, **{str(number): number for number in range(1, vocabulary)}}
    made = Tokenizer(models.WordLevel(words, unk_token="1"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def llama(
    shape: tuple[int, ...],
    device: torch.device,
    compute_dtype: torch.dtype = torch.float32,
    positions: int = 2048,
) -> LanguageModel:
    """Return a Llama of a shape as in `SHAPES`, with random weights in float32."""
    repair_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, key_value, mlp, vocabulary = shape
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    with device:
        module = LlamaForCausalLM(config)
    return LanguageModel(module.float(), tokenizer(vocabulary), device, compute_dtype)


def records(
    lengths: Iterable[tuple[int, int]], vocabulary: int, generator: np.random.Generator
) -> list[Record]:
    """Return texts of so many tokens each: the prompt's, and the answer's with its end."""

    def text(tokens: int) -> str:
        return " ".join(map(str, generator.integers(1, vocabulary, tokens)))

    return [{"prompt": text(prompt), "answer": text(answer - 1)} for prompt, answer in lengths]


def suite(train: int, test: int, vocabulary: int, scale: float = 1.0) -> dict[str, Splits]:
    """Return so many records of each of TRACE's tasks, of lengths drawn between its deciles.

    Args:
        train: records to learn.
        test: records to answer; as many are there to choose hyperparameters with.
        vocabulary: how many words there are.
        scale: what all lengths are multiplied by.
    """
    generator = np.random.default_rng(0)

    def drawn(task: str, count: int) -> list[Record]:
        at = generator.random((2, count))
        columns = [
            np.interp(chance, np.linspace(0, 1, len(deciles)), deciles)
            if len(deciles) > 1
            else np.full(count, deciles[0])
            for chance, deciles in zip(at, DECILES[task], strict=True)
        ]
        lengths = np.maximum(2, np.rint(scale * np.stack(columns, axis=1))).astype(int)
        return records([(int(p), int(a)) for p, a in lengths], vocabulary, generator)

    return {
        task: {"train": drawn(task, train), "eval": drawn(task, test), "test": drawn(task, test)}
        for task in DECILES
    }
