"""Encoded examples as tensors, for the state of a run that holds some in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cl_mofo.data.tokenise import Example


def pack(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return examples as three flat tensors, from which `unpack` makes them again.

    Returns:
        `ids`: int32, all ids one after another; `lengths` and `supervised`: int32, one per example.
    """
    return {
        "ids": torch.tensor([i for example in examples for i in example.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(example) for example in examples], dtype=torch.int32),
        "supervised": torch.tensor([e.supervised for e in examples], dtype=torch.int32),
    }


def unpack(packed: Mapping[str, torch.Tensor]) -> list[Example]:
    """Return the examples that `pack` was given.

    Raises:
        ValueError: the tensors do not fit together.
    """
    ids, lengths = packed["ids"].tolist(), packed["lengths"].tolist()
    supervised = packed["supervised"].tolist()
    if len(lengths) != len(supervised) or sum(lengths) != len(ids):
        raise ValueError(
            f"packed examples: {len(ids)} ids, but {len(lengths)} lengths of {sum(lengths)} ids in "
            f"all and {len(supervised)} counts of supervised ids. The state is not a whole one"
        )
    examples = []
    start = 0
    for length, learned in zip(lengths, supervised, strict=True):
        examples.append(Example(tuple(ids[start : start + length]), learned))
        start += length
    return examples
