"""Whether MoFO selects on a GPU what the reference selects on a copy on the host.

    python -m benchmarks.gpu.selection [--size 1.1b] [--device cuda]

Of values with and without ties, by each of the selections there are; then of the momentum in steps
of the optimizer, where the entries that moved are compared. A count of mismatching entries other
than 0 is a fault.
"""

import argparse
import math
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu.record import results_folder, write
from cl_mofo.config import EngineConfig
from cl_mofo.engine.ranks import join
from cl_mofo.optim import MoFO
from cl_mofo.optim.reference import reference_selection
from cl_mofo.optim.selection import count, largest, largest_on_device
from cl_mofo.optim.sharded import largest_sharded
from cl_mofo.optim.shards import shards_of
from cl_mofo.optim.step import new_state
from cl_mofo.optim.work import Work

FRACTIONS = (0.001, 0.05, 1)
LENGTHS = {"1.1b": (1, 70_001, 2048 * 5632), "tiny": (1, 1000, 70_001)}
SHAPES = {"1.1b": [(32_000, 2048), (256, 2048), (2048,)], "tiny": [(400, 128), (64, 128), (128,)]}
STEPS = 3


def cases(length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    normal = torch.randn(length, generator=generator)
    small = torch.randint(-3, 4, (length,), generator=generator)
    return {
        "normal": normal,
        "normal, float64": normal.double(),
        "seven values": small.float(),
        "zeros of both signs": torch.where(small > 0, 0.0, -0.0),
        "subnormal": small * 1e-45,
        "infinite": torch.where(small == 3, -math.inf, normal),
    }


def by_sharding(values: Tensor, k: int) -> Tensor:
    return next(largest_sharded([values], [k], [values.numel()], None))


def by_triton(values: Tensor, k: int) -> Tensor:
    """Step a tensor of ones, whose gradients leave its moments as they are, and see what moved."""
    from cl_mofo.optim.triton_step import TritonStep

    options = {"lr": 1.0, "betas": (0.0, 0.9), "eps": 0.0, "weight_decay": 0.5, "decay": "selected"}
    options["update_fraction"] = f"{k}/{values.numel()}"
    param = torch.ones_like(values)
    state = new_state(param)
    state["exp_avg"].copy_(values)
    state["exp_avg_sq"].fill_(math.inf)
    item = Work(options, param, values, shards_of("values", param), state)
    path = TritonStep(values.device.type)
    assert path.takes(item)
    path.step([item], None)
    return (param != 1).nonzero()[:, 0]


def of_triton(device: str, values: Tensor) -> bool:
    """Tell whether there are kernels, on this device and for these values, to compare."""
    there = device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return there and values.dtype == torch.float32 and bool(values.isfinite().all())


def wrong(expected: Tensor, found: Tensor) -> int:
    """Return how many entries one has and the other has not."""
    mask = torch.zeros_like(expected)
    mask[found.cpu()] = True
    return int((mask != expected).sum()) + abs(len(found) - int(mask.sum()))


def of_values(size: str, device: str) -> list[dict]:
    selections = {
        "largest": largest,
        "largest_on_device": largest_on_device,
        "largest_sharded": by_sharding,
        "Triton": by_triton,
    }
    rows = []
    for length in LENGTHS[size]:
        for case, values in cases(length).items():
            for fraction in FRACTIONS:
                expected = reference_selection(values, fraction)
                k = count(fraction, length)
                there = values.to(device)
                rows += [
                    {
                        "selection": name,
                        "values": case,
                        "entries": length,
                        "selected": k,
                        "mismatches": wrong(expected, select(there, k)),
                    }
                    for name, select in selections.items()
                    if name != "Triton" or of_triton(device, values)
                ]
    return rows


def of_steps(size: str, device: str) -> list[dict]:
    """Step with gradients of four values, so that momenta are tied, and look at what moved."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(device))
        for shape in SHAPES[size]
    ]
    optimizer = MoFO(parameters, lr=1e-2, update_fraction=0.05)
    rows = []
    for number in range(1, STEPS + 1):
        before = [parameter.detach().clone() for parameter in parameters]
        for parameter in parameters:
            drawn = torch.randint(1, 5, parameter.shape, generator=generator) - 2.5
            parameter.grad = drawn.to(device)
        optimizer.step()
        for parameter, old in zip(parameters, before, strict=True):
            moved = (parameter.detach() != old).cpu()
            expected = reference_selection(optimizer.state[parameter]["exp_avg"].cpu(), 0.05)
            rows.append(
                {
                    "step": number,
                    "shape": list(parameter.shape),
                    "selected": int(expected.sum()),
                    "mismatches": int((moved != expected).sum()),
                }
            )
    optimizer.check()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=LENGTHS, default="1.1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=results_folder() / "selection.json")
    arguments = parser.parse_args()
    join(EngineConfig(kind="fsdp"))  # a group of one rank, for the selection over ranks
    found = {
        "values": of_values(arguments.size, arguments.device),
        "steps": of_steps(arguments.size, arguments.device),
    }
    dist.destroy_process_group()
    mismatches = sum(row["mismatches"] for rows in found.values() for row in rows)
    write(arguments.out, vars(arguments), {"mismatches": mismatches, **found})
    if mismatches:
        raise SystemExit(f"{mismatches} entries are selected otherwise than by the reference")


if __name__ == "__main__":
    main()
