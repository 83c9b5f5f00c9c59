"""How long a MoFO step takes on a CPU beside a step of torch's AdamW, as a ratio.

    python -m benchmarks.optimizer [--fraction 0.05 0.2] [--threads 2] [--authors PATH]

Compared are torch's fused AdamW, its foreach AdamW, MoFO with compiled code, MoFO without, and with
--authors the optimizer of MoFO's authors, from a file or a folder that you have. All step tensors
of the same shapes, in turns, in one process: those of one of TinyLlama-1.1B's decoder layers, and
once those with its embedding (32000x2048). "Few rows touched" is an eighth of the embedding, where
100 of 4000 rows have gradients: at these fractions MoFO also moves entries that never had one,
chosen among ties. Then MoFO's step is taken on 1e5 to 1e8 parameters, in eight tensors, beside
fused AdamW's, for how it grows; --sizes 1e9 is taken alone, if two do not fit the memory.

Takes 2 minutes on 2 quiet cores and 5 GB of memory.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from torch.nn import Parameter

from benchmarks.authors import authors_optimizer
from benchmarks.record import record
from benchmarks.timing import exponent, interleaved, ratio, ratios
from cl_mofo import MoFO
from cl_mofo.optim import native, nonfinite

Shapes = dict[str, tuple[int, ...]]

LAYER: Shapes = {
    "q_proj": (2048, 2048),
    "k_proj": (256, 2048),
    "v_proj": (256, 2048),
    "o_proj": (2048, 2048),
    "gate_proj": (5632, 2048),
    "up_proj": (5632, 2048),
    "down_proj": (2048, 5632),
    "input_layernorm": (2048,),
    "post_attention_layernorm": (2048,),
}
EMBEDDING: Shapes = {"embed_tokens": (32_000, 2048)}
SLICE: Shapes = {"embed_tokens": (4000, 2048)}
TOUCHED = 100  # rows of it
LR = 1e-5
FUSED, FOREACH, COMPILED, PURE, AUTHORS = (
    "AdamW, fused",
    "AdamW, foreach",
    "MoFO",
    "MoFO without compiled code",
    "MoFO, the authors'",
)
BYTES = 4 * 4.3
"""Per parameter: itself, its gradient, two moments, scratch of the largest tensor."""

Step = Callable[[], object]


def parameters(
    shapes: Shapes, dtype: torch.dtype, rows: int | None = None
) -> list[tuple[str, Parameter]]:
    """Return random parameters that have random gradients, zero after the first `rows` rows."""
    generator = torch.Generator().manual_seed(0)
    named = []
    for name, shape in shapes.items():
        parameter = Parameter(torch.randn(shape, generator=generator).to(dtype))
        parameter.grad = torch.randn(shape, generator=generator).to(dtype)
        if rows is not None:
            parameter.grad[rows:] = 0
        named.append((name, parameter))
    return named


def contenders(
    shapes: Shapes,
    fraction: float,
    dtype: torch.dtype,
    authors: Path | None,
    rows: int | None = None,
) -> dict[str, Step]:
    """Return what takes one step, by name; each has parameters of its own."""

    def values() -> list[Parameter]:
        return [parameter for _, parameter in parameters(shapes, dtype, rows)]

    known: dict[str, Step] = {
        FUSED: torch.optim.AdamW(values(), lr=LR, fused=True).step,
        FOREACH: torch.optim.AdamW(values(), lr=LR, foreach=True).step,
        COMPILED: MoFO(values(), lr=LR, update_fraction=fraction).step,
        PURE: without_compiled_code(MoFO(values(), lr=LR, update_fraction=fraction).step),
    }
    if authors is not None:
        named = parameters(shapes, dtype, rows)
        known[AUTHORS] = authors_optimizer(authors, named, fraction, LR).step
    return known


def without_compiled_code(step: Step) -> Step:
    def pure() -> None:
        with (
            mock.patch.object(native, "library", return_value=None),
            mock.patch.object(nonfinite, "library", return_value=None),
        ):
            step()

    return pure


def compared(
    fractions: Sequence[float], repeats: int, dtype: torch.dtype, authors: Path | None
) -> list[dict[str, Any]]:
    rows = []
    settings: list[tuple[str, Shapes, float, int | None]] = [
        *(("one layer", LAYER, fraction, None) for fraction in fractions),
        *(("few rows touched", SLICE, fraction, TOUCHED) for fraction in fractions),
        ("layer and embedding", LAYER | EMBEDDING, fractions[0], None),
    ]
    for tensors, shapes, fraction, touched in settings:
        steps = contenders(shapes, fraction, dtype, authors, touched)
        times = interleaved(steps, repeats, warmup=2)
        for row in ratios(times, FUSED):
            name = row.pop("name")
            rows.append({"optimizer": name, "tensors": tensors, "fraction": fraction, **row})
    return rows


def growth(
    sizes: Sequence[float], fraction: float, repeats: int, dtype: torch.dtype
) -> tuple[list[dict[str, Any]], float | None]:
    """Return a row for each number of parameters, and the exponent of the step's time."""
    rows: list[dict[str, Any]] = []
    for size in sorted(map(int, sizes)):
        shapes: Shapes = {f"tensor {i}": (max(1, size // 8),) for i in range(8)}
        available = psutil.virtual_memory().available
        if available < BYTES * size:
            print(f"{size:,} parameters need {BYTES * size / 1e9:.0f} GB: left out")
            continue
        named = parameters(shapes, dtype)
        steps: dict[str, Step] = {
            COMPILED: MoFO([p for _, p in named], lr=LR, update_fraction=fraction).step
        }
        if available > 2 * BYTES * size:
            others = [p for _, p in parameters(shapes, dtype)]
            steps[FUSED] = torch.optim.AdamW(others, lr=LR, fused=True).step
        times = interleaved(steps, repeats if size < 10**8 else min(repeats, 5), warmup=2)
        row = {"parameters": size, "ms": 1000 * statistics.median(times[COMPILED])}
        if FUSED in times:
            row |= ratio(times[COMPILED], times[FUSED])
        rows.append(row)
    if len(rows) < 2:
        return rows, None
    return rows, exponent([row["parameters"] for row in rows], [row["ms"] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.05, 0.2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=11, help="turns that count (11)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--authors", type=Path, help="a file or folder with the authors' optimizer")
    parser.add_argument(
        "--sizes", type=float, nargs="*", default=[1e5, 1e6, 1e7, 1e8], help="for how it grows"
    )
    parser.add_argument("--out", type=Path, help="the file to write, or its folder")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    dtype = getattr(torch, chosen.dtype)
    rows = compared(chosen.fraction, chosen.repeats, dtype, chosen.authors)
    grown, slope = growth(chosen.sizes, chosen.fraction[0], chosen.repeats, dtype)
    title = "MoFO's step as parameters grow"
    if slope is not None:
        title += f": time as their number to the {slope:.2f}"
    settings = {key: value for key, value in vars(chosen).items() if key != "out"}
    record(
        "optimizer",
        settings | {"compiled": native.library(dtype) is not None},
        rows,
        more={title: grown} if grown else {},
        out=chosen.out,
        exponent=slope,
    )


if __name__ == "__main__":
    main()
