"""What the page docs/performance.md shows, in its order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: of the benchmark, whose records it shows.
        title: its heading.
        text: what is compared, and what a reader has to know to read the table.
        gpu: whether its records are the GPU's.
    """

    name: str
    title: str
    text: str
    gpu: bool = False


SECTIONS = (
    Section(
        "optimizer",
        "The optimizer",
        "A step of MoFO over a step of torch's fused AdamW on the same tensors. Goal on a "
        "CPU: at most 2.5 (the authors' code: 42 to 75).",
    ),
    Section(
        "training",
        "Training",
        "The sequence of tasks, in a plain loop that batches as TRACE's code does (not "
        "sorted, padded on the left, logits of all positions), in Hugging Face's Trainer, and "
        "in ours: same examples in the same steps, same precision, fused AdamW, clipping. `vs "
        "plain` and `vs Trainer` are how many times as fast the whole sequence is, `lowest` "
        "and `highest` are `vs plain` of single tasks; `loss apart` is the largest relative "
        "difference of any step's loss from the plain loop's. Goals: 1.5 times the plain "
        "loop, 1.2 times Trainer, `computed/real` tokens at most 1.05.",
    ),
    Section(
        "scoring",
        "Scoring",
        "The test sets answered in TRACE's way (batches of 4 in the data's order, up to 512 "
        "new tokens) and in ours, greedily, by the same briefly fine-tuned model in float32. "
        "`vs TRACE` is how many times as fast, `lowest` and `highest` are single tasks'. "
        "Scores and texts are compared over the answers that both ended. Goal: 4 times in "
        "default mode, scores equal.",
    ),
    Section(
        "strategies",
        "Strategies",
        "What a strategy adds to plain training, ours and Avalanche's plugins on the same "
        "model and examples, each over its own side's plain training. `task` includes what "
        "comes at a task's end. The exponent is of what a step takes more, against the number "
        "of past tasks: 1 is proportional; there is none where it takes no more.",
    ),
    Section(
        "growth",
        "How cost grows",
        "A training step of random Llamas against the length of the texts and the size of the "
        "model: the exponent b of a * size^b, fitted to all points and to the upper half of "
        "them. The optimizer's own growth stands above, that of strategies with the number of "
        "tasks too.",
    ),
    Section(
        "sharded",
        "MoFO over several ranks",
        "What the selection sends per step, counted between ranks of one machine, and projected to "
        "others under the assumptions that the command prints; see also [scale.md](scale.md).",
    ),
    Section(
        "checkpoints",
        "Checkpoints",
        "What the demo's run spends on them; see also [reliability.md](reliability.md).",
    ),
    Section(
        "optimizer",
        "GPU: the optimizer",
        "A step of MoFO over fused AdamW's on TinyLlama-1.1B's tensors. Goal at 5%: at most 1.1.",
        gpu=True,
    ),
    Section(
        "training",
        "GPU: training",
        "Random weights of TinyLlama-1.1B's shape, texts of TRACE's lengths. Goals: MoFO's "
        "training time within 0.5% of AdamW's (the paper: 4.1 to 5.0% on A800s), at least 45% "
        "model FLOP utilisation with packing.",
        gpu=True,
    ),
    Section(
        "scoring",
        "GPU: scoring",
        "As on the CPU, with random weights: answers run into their budgets, so this shows "
        "speed and nothing of scores.",
        gpu=True,
    ),
    Section(
        "selection",
        "GPU: the selection is the reference's",
        "Entries that are selected otherwise than by the reference on the host; more than 0 "
        "is a fault.",
        gpu=True,
    ),
    Section(
        "engines",
        "GPU: engines",
        "A step under each engine; see [scale.md](scale.md).",
        gpu=True,
    ),
)
