"""A suite of eight small tasks and a tiny base model, for the demo, the tests and a first look.

The tasks bear TRACE's names and have its shapes (the same kinds of prompt, answer and score), but
their texts are put together from a few hundred words by the code in this package. The model in
`tiny/` is a Llama with one million parameters that `python -m cl_mofo.mini.pretrain` trained on
texts of the same small world. Together they let a whole continual-learning run, with real
forgetting, take seconds on two CPU cores.

They are stand-ins. A method's figures here say whether its code works; they say nothing about
TRACE, and nothing about language models at large.
"""

from __future__ import annotations

from pathlib import Path

from cl_mofo.mini.world import MAKERS, Record, splits

TASKS: tuple[str, ...] = tuple(MAKERS)
"""The tasks in TRACE's order."""


def records(
    seed: int = 0, train: int = 128, eval: int = 32, test: int = 40
) -> dict[str, dict[str, list[Record]]]:
    """Return the suite: `{task: {"train" | "eval" | "test": [{"prompt", "answer"}, ...]}}`.

    The same arguments give the same records everywhere. No prompt occurs twice in a task, within
    a split or between splits. A task's classes (letters, kinds of problem or line, outcomes)
    differ by at most one in each split.

    Args:
        seed: draws another suite from the same world.
        train: training records of each task.
        eval: validation records of each task.
        test: test records of each task.

    Raises:
        ValueError: a size is negative, or the world is too small for the sizes.
    """
    sizes = {"train": train, "eval": eval, "test": test}
    for split, size in sizes.items():
        if size < 0:
            raise ValueError(f"mini records: {split}={size} is negative")
    return {task: splits(task, seed, sizes) for task in TASKS}


def tiny_path() -> Path:
    """Return the folder of the embedded model, in Hugging Face's format."""
    return Path(__file__).parent / "tiny"
