"""Pre-train the tiny model on texts of the suite's world: `python -m cl_mofo.mini.pretrain OUT`.

The texts state facts (what an animal eats, what a sentence amounts to, how two numbers multiply)
and never show a task's prompt or the form of its answer, so the model knows the world and has still
to learn the tasks. Weights, texts and order come from fixed seeds: on the same machine, with the
same number of threads and the same torch, two runs give the same bits. The threads are whatever
torch finds (`OMP_NUM_THREADS` sets them).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cl_mofo.compat import repair_torchvision
from cl_mofo.mini.tokenizer import train_tokenizer
from cl_mofo.mini.world import texts

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """How large the model is and how it is trained; the defaults made the embedded one."""

    steps: int = 3000
    rows: int = 16  # rows of a step
    length: int = 128  # tokens of a row
    lr: float = 3e-3  # after `warmup` steps, then down a cosine to a hundredth
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 0
    vocabulary: int = 1280
    hidden: int = 128
    mlp: int = 384
    layers: int = 4
    heads: int = 4
    context: int = 2048  # long enough for TRACE's own prompts to pass through


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a Llama of the recipe's size with random weights drawn from its seed."""
    repair_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: str, rows: int, length: int
) -> Iterator[torch.Tensor]:
    """Yield (rows, length) ids without end: texts between BOS and EOS, laid end to end."""
    stream = texts(seed)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids: list[int] = []
    while True:
        while len(ids) < rows * length:
            chunk = list(itertools.islice(stream, 256))
            for encoded in tokenizer(chunk, add_special_tokens=False)["input_ids"]:
                ids += [bos, *encoded, eos]
        yield torch.tensor(ids[: rows * length]).view(rows, length)
        ids = ids[rows * length :]


def mean_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 4) -> float:
    """Return the mean loss per token, in nats, on texts kept out of training."""
    held_out = batches(tokenizer, "held out", 16, 128)
    model.train(False)
    with torch.no_grad():
        losses = [
            float(model(input_ids=x, labels=x).loss) for x in itertools.islice(held_out, count)
        ]
    return sum(losses) / count


def pretrain(out: Path, recipe: Recipe | None = None) -> None:
    """Train a tokenizer and a model and save both in `out`, printing progress.

    Args:
        out: the folder to write; it is made if it is missing.
        recipe: sizes, steps and seed.
    """
    repair_torchvision()
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    recipe = recipe or Recipe()
    tokenizer = train_tokenizer(recipe.vocabulary, context=recipe.context)
    model = new_model(recipe, tokenizer)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, {len(tokenizer)} tokens, {recipe.steps} steps")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    kept = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups,
        lr=recipe.lr,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    warmup = min(recipe.warmup, max(1, recipe.steps // 10))
    schedule = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            CosineAnnealingLR(optimizer, max(1, recipe.steps - warmup), recipe.lr / 100),
        ],
        [warmup],
    )
    data = batches(tokenizer, f"train {recipe.seed}", recipe.rows, recipe.length)
    began = time.perf_counter()
    model.train()
    for step, ids in enumerate(itertools.islice(data, recipe.steps), start=1):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps:
            seconds = time.perf_counter() - began
            print(f"step {step:5}  loss {loss.item():.3f}  {seconds:5.0f} s", flush=True)
    print(f"held-out loss {mean_loss(model, tokenizer):.3f}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Read the command line and pre-train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    arguments = parser.parse_args()
    pretrain(arguments.out, Recipe(steps=arguments.steps))


if __name__ == "__main__":
    main()
