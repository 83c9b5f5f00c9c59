"""A Llama of random weights, and a batch of random tokens."""

from dataclasses import dataclass

import torch

from benchmarks import synthetic
from cl_mofo.data.batches import MicroBatch, collate
from cl_mofo.data.tokenise import Example
from cl_mofo.model import LanguageModel


@dataclass(frozen=True)
class Size:
    """A model's shape, as in `synthetic.SHAPES`, and what it is timed on."""

    shape: tuple[int, ...]
    examples: int
    tokens: int
    micro_batch: int
    warmup: int
    steps: int


SIZES = {
    "1.1b": Size(synthetic.SHAPES["1.1b"], 8, 1024, 4, warmup=4, steps=12),
    "small": Size((512, 4, 4, 2, 1408, 4096), 8, 32, 2, warmup=1, steps=2),
    "tiny": Size((128, 4, 4, 2, 384, 1024), 8, 32, 2, warmup=1, steps=3),
}
SUPERVISED = 8
"""One token in as many is an answer's, as in TRACE one in ten to twenty is."""


def random_model(size: Size, device: torch.device) -> LanguageModel:
    return synthetic.llama(size.shape, device, torch.bfloat16, positions=size.tokens)


def random_batch(size: Size) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(size.shape[-1], (size.examples, size.tokens), generator=generator)
    rows = [Example(ids, size.tokens // SUPERVISED) for ids in drawn.tolist()]
    starts = range(0, size.examples, size.micro_batch)
    return [collate(rows[i : i + size.micro_batch], pad=0) for i in starts]
