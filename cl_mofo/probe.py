"""Find out how a model may be given several examples at once, by comparing with one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from cl_mofo.config import Recipe
from cl_mofo.data.batches import IGNORED, MicroBatch, collate, pack
from cl_mofo.data.division import Way
from cl_mofo.data.tokenise import Example
from cl_mofo.model import LanguageModel, supervised_logits, without_dropout

LENGTHS = (7, 1, 12, 2)
"""Tokens of the examples that are compared; the second has nothing that could be learned."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far logits may be apart, as a share of their norm: rounding stays below, and what an example
sees of another mostly does not."""
LEAK = 1e-6
"""How far in float32 an example's logits may be apart, as a share of their norm, when another one
is changed: by nothing but the order of sums."""


def way_of(language_model: LanguageModel, recipe: Recipe, longest: int) -> Way:
    """Return how a model may be given several examples at once.

    The model is run on a few random tokens; neither it nor the random state is changed.

    Args:
        language_model: on its device, and not yet spread over several.
        recipe: whether packing is wanted.
        longest: most tokens of an example in this run.
    """
    vocabulary = language_model.module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()), n)
        for n in LENGTHS
    ]
    refused = None
    if recipe.training.packing and not recipe.engine.compile:
        packed = [pack(examples)]
        refused = (
            _window(language_model, longest)
            or _refusal(language_model, examples, packed)
            or _leak(language_model, examples)
        )
        if refused is None:
            return Way(packed=True)
    padded = [collate(examples, 0, masked=False)]
    return Way(masked=_refusal(language_model, examples, padded) is not None, refused=refused)


def _window(language_model: LanguageModel, longest: int) -> str | None:
    """Tell of layers that do not see all of a long example; what is compared here is shorter."""
    config = language_model.module.config.get_text_config()
    for key in ("sliding_window", "attention_chunk_size"):
        width = getattr(config, key, None)
        if width is not None and width < longest and getattr(config, f"use_{key}", True):
            return f"its {key} is {width}, and an example may have {longest} tokens"
    return None


def _refusal(
    language_model: LanguageModel, examples: Sequence[Example], batches: Sequence[MicroBatch]
) -> str | None:
    dtypes = [torch.float32]
    if language_model.device.type != "cpu":  # where another type means other kernels
        dtypes.append(language_model.compute_dtype)
    for dtype in dtypes:
        apart = _apart(language_model, examples, batches, dtype)
        if isinstance(apart, str):
            return apart
        if not apart <= TOLERANCE[dtype]:
            return f"its logits then differ by {apart:.2g} of their norm"
    return None


def _leak(language_model: LanguageModel, examples: Sequence[Example]) -> str | None:
    """Tell if what one example holds changes another's logits, little though it may be at first."""
    first, *others = examples
    swapped = Example(tuple(reversed(first.ids)), first.supervised)
    with _undisturbed(language_model):
        as_is, changed = (
            _logits(language_model, [pack([one, *others])], torch.float32)[len(first) - 1 :]
            for one in (first, swapped)
        )
    apart = float((as_is - changed).norm() / as_is.norm())
    if apart <= LEAK:
        return None
    return f"one example then changes another's logits, by {apart:.2g} of their norm"


def _apart(
    language_model: LanguageModel,
    examples: Sequence[Example],
    batches: Sequence[MicroBatch],
    dtype: torch.dtype,
) -> float | str:
    """Return how far logits are from those of one example at a time, or why there are none."""
    alone = [collate([example], 0) for example in examples]
    with _undisturbed(language_model):
        try:
            together = _logits(language_model, batches, dtype)
        except Exception as error:  # whatever a model's own code makes of what it does not know
            return next(iter(str(error).splitlines()), repr(error))
        right = _logits(language_model, alone, dtype)
    return float((together - right).norm() / right.norm())


@contextmanager
def _undisturbed(language_model: LanguageModel) -> Iterator[None]:
    device = language_model.device
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), without_dropout(language_model.module):
        yield


@torch.no_grad()
def _logits(
    language_model: LanguageModel, batches: Sequence[MicroBatch], dtype: torch.dtype
) -> torch.Tensor:
    """Return the logits [labels, vocabulary] that predict supervised labels, in float64."""
    device, found = language_model.device, []
    for batch in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits, labels = supervised_logits(language_model.module, batch.to(device))
        found.append(logits[labels != IGNORED].double())
    return torch.cat(found)
