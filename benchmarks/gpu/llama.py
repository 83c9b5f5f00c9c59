"""A Llama of random weights, and a batch of random tokens."""

from dataclasses import dataclass

import torch

from cl_mofo.compat import repair_torchvision
from cl_mofo.data.batches import MicroBatch, collate
from cl_mofo.data.tokenise import Example
from cl_mofo.model import LanguageModel


@dataclass(frozen=True)
class Size:
    """A model's shape, and what it is timed on."""

    shape: dict[str, int]
    examples: int
    tokens: int
    micro_batch: int
    warmup: int
    steps: int


def llama(hidden: int, layers: int, heads: int, kv: int, mlp: int, vocabulary: int) -> dict:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
    }


SIZES = {
    "1.1b": Size(llama(2048, 22, 32, 4, 5632, 32_000), 8, 1024, 4, warmup=4, steps=12),
    "small": Size(llama(512, 4, 4, 2, 1408, 4096), 8, 32, 2, warmup=1, steps=2),
    "tiny": Size(llama(128, 4, 4, 2, 384, 1024), 8, 32, 2, warmup=1, steps=3),
}
SUPERVISED = 8
"""One token in as many is an answer's, as in TRACE one in ten to twenty is."""


def random_model(size: Size, device: torch.device) -> LanguageModel:
    repair_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **size.shape, max_position_embeddings=size.tokens, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    with device:
        module = LlamaForCausalLM(config)
    return LanguageModel(module.float(), None, device, torch.bfloat16)


def random_batch(size: Size) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(
        size.shape["vocab_size"], (size.examples, size.tokens), generator=generator
    )
    rows = [Example(ids, size.tokens // SUPERVISED) for ids in drawn.tolist()]
    starts = range(0, size.examples, size.micro_batch)
    return [collate(rows[i : i + size.micro_batch], pad=0) for i in starts]
