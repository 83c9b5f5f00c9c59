"""How the time of a training step grows with the sequence's length and with the model's size.

    python -m benchmarks.growth [--lengths ...] [--hidden ...]

Llamas of random weights take steps of our loop with AdamW on texts of exactly so many tokens, one
in eight of them an answer's. Either the length grows, at a fixed size and a fixed number of texts,
or the size (hidden size, and with its square the parameters of a layer) at a fixed length. All take
turns; what is told is a step's median time over the first one's, and the exponent b of a * size^b
fitted to all points.

Takes 2 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import synthetic
from benchmarks.record import record
from benchmarks.setting import Setting, changed
from benchmarks.timing import exponent, interleaved, ratio
from cl_mofo.data.plan import plan_tasks
from cl_mofo.data.suites import Suite
from cl_mofo.discovery import registry
from cl_mofo.experiment import as_recipe

VOCABULARY = 1024
SUPERVISED = 8
"""One token in as many is an answer's."""


def step(hidden: int, layers: int, length: int, texts: int, device: str) -> tuple[Any, int]:
    """Return what takes one training step, and the model's parameters."""
    shape = (hidden, layers, max(1, hidden // 64), max(1, hidden // 128), 3 * hidden, VOCABULARY)
    model = synthetic.llama(shape, torch.device(device), positions=length + 1)
    answer = max(2, length // SUPERVISED)
    recipe = changed(
        as_recipe({"strategy": "sequential"}),
        [
            "tasks.only=[FOMC]",
            "tasks.epochs=1",
            f"tasks.prompt_tokens={length}",
            f"tasks.answer_tokens={answer}",
            f"optimizer.batch_size={texts}",
            f"training.micro_batch_size={texts}",
        ],
    )
    plans = plan_tasks(recipe, registry())
    lengths = [(length - answer, answer)] * texts
    rows = synthetic.records(lengths, VOCABULARY, np.random.default_rng(0))
    records = {"FOMC": {"train": rows, "eval": rows, "test": rows}}
    made = Setting(recipe, plans, Suite(records, (), {}), model)
    loop = made.loop("sequential", language_model=model)
    experience = made.experiences()[0]
    parameters = sum(p.numel() for p in model.module.parameters())
    return lambda: loop.train(experience, eval_streams=[]), parameters


def table(
    axis: str, sizes: Sequence[int], times: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Return a row for each point, its cost told over the first one's."""
    names = list(times)
    return [
        {
            "grows": axis,
            "size": size,
            "step ms": 1000 * statistics.median(times[name]),
            **ratio(times[name], times[names[0]]),
        }
        for size, name in zip(sizes, names, strict=True)
    ]


def fitted(axis: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the exponent of an axis' rows, of all and of the upper half, where overhead fades."""
    sizes, costs = [r["size"] for r in rows], [r["ratio"] for r in rows]
    half = (len(rows) - 1) // 2
    return {
        "time over": axis,
        "from": sizes[0],
        "to": sizes[-1],
        "exponent": exponent(sizes, costs),
        "upper half": exponent(sizes[half:], costs[half:]),
        "points": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--at-hidden", type=int, default=256, help="where the length grows")
    parser.add_argument("--at-length", type=int, default=128, help="where the model grows")
    parser.add_argument("--texts", type=int, default=4, help="in a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="file or folder instead of benchmarks/results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    def made(hidden: int, length: int) -> tuple[Callable[[], None], int]:
        return step(hidden, arguments.layers, length, arguments.texts, arguments.device)

    by_length = {length: made(arguments.at_hidden, length) for length in arguments.lengths}
    by_size = {hidden: made(hidden, arguments.at_length) for hidden in arguments.hidden}
    axes: dict[str, dict[int, Callable[[], None]]] = {
        "tokens of a text": {length: do for length, (do, _) in by_length.items()},
        "parameters": {parameters: do for do, parameters in by_size.values()},
    }
    rows, fits = [], []
    for axis, points in axes.items():
        contenders = {str(size): do for size, do in points.items()}
        times = interleaved(contenders, arguments.repeats)
        rows += table(axis, list(points), times)
        fits.append(fitted(axis, rows[-len(points) :]))
    record("growth", vars(arguments), fits, more={"Points": rows}, out=arguments.out)


if __name__ == "__main__":
    main()
