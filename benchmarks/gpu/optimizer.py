"""A step of MoFO over a step of torch's fused AdamW, on all tensors of TinyLlama-1.1B.

    python -m benchmarks.gpu.optimizer [--size 1.1b] [--device cuda]

All step the same float32 weights with the same random gradients, in turns. `ms` and the ratios are
of the device's own time: on a GPU a step is queued behind other work, as in training it is behind
the backward pass, so what the host does is hidden as far as it can be; `from idle, ms` has all of
it. `held` is what an optimizer keeps, in bytes per parameter (AdamW's two moments are 8), and
`temporary` what a step takes beside that, in MB. "without the check" leaves out the look at the
gradients, whether all are finite, which AdamW does not have; "pure" is the path of any device.

`host, ms` is how long the host was busy with such a queued step, and `ended first` in how many of
the turns the work that was queued before it had ended when it returned: in all if the host waits
for the device, in none if it never does. Torch's sync debug mode, of which `waits` tells, sees
explicit waits alone: not the copies from pageable memory, nor a queue that is full.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.record import results_folder, write
from benchmarks.synthetic import SHAPES, llama
from benchmarks.timing import interleaved, ratios, synchronize
from cl_mofo.optim import MoFO
from cl_mofo.optim.pure import Pure
from cl_mofo.optim.shards import shards_of
from cl_mofo.optim.work import Work

FRACTIONS = (0.05, 0.2)
TURNS = {"1.1b": (4, 15), "tiny": (1, 3)}
"""By size: turns that do not count, and those that do."""
SETS = 3
"""Of gradients, that take turns too, so that the moments move."""
BASE = "AdamW(fused)"


class Contender:
    """An optimizer's step, as it is timed."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: list[list[torch.Tensor]],
        *,
        checked: bool = True,
    ) -> None:
        self.optimizer, self._gradients, self._checked = optimizer, gradients, checked
        self.seconds: list[float] = []
        self.host_seconds: list[float] = []
        self.ended_first: list[bool] = []
        self._params = optimizer.param_groups[0]["params"]
        self.on_gpu = self._params[0].device.type == "cuda"
        self._busy = (
            torch.zeros(8192, 8192, dtype=torch.bfloat16, device="cuda") if self.on_gpu else None
        )

    def __call__(self) -> None:
        self.give_gradients()
        if self._busy is None:
            began = time.perf_counter()
            self.step()
            self.seconds.append(time.perf_counter() - began)
            return
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(30):
            self._busy @ self._busy
        started.record()
        began = time.perf_counter()
        self.step()
        self.host_seconds.append(time.perf_counter() - began)
        self.ended_first.append(started.query())
        ended.record()
        ended.synchronize()
        self.seconds.append(started.elapsed_time(ended) / 1000)

    def queued(self, skipped: int) -> dict[str, Any]:
        """Return what the host had to do with steps behind other work, but for the first ones."""
        if not self.on_gpu:
            return {}
        return {
            "host, ms": 1000 * statistics.median(self.host_seconds[skipped:]),
            "ended first": sum(self.ended_first[skipped:]),
        }

    def give_gradients(self) -> None:
        gradients = self._gradients[len(self.seconds) % SETS]
        for param, grad in zip(self._params, gradients, strict=True):
            param.grad = grad

    def step(self) -> None:
        if self._checked:
            self.optimizer.step()
            return
        assert isinstance(self.optimizer, MoFO)
        (group,) = self.optimizer.param_groups
        state = self.optimizer.state
        items = [Work(group, p, p.grad, shards_of("p", p), state[p]) for p in self._params]
        with torch.no_grad():
            self.optimizer._paths[0].step(items, None)


def pure(optimizer: MoFO) -> MoFO:
    optimizer._paths = (Pure(),)
    return optimizer


def held_and_temporary(contender: Contender) -> dict[str, float]:
    """Take the first two steps, and return what the optimizer keeps and what a step needs."""
    if not contender.on_gpu or contender.optimizer.state:
        contender.step()
        return {}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contender.optimizer.step()
    held = torch.cuda.memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    contender.step()
    temporary = torch.cuda.max_memory_allocated() - before - held
    return {"held": held, "temporary": temporary / 1e6}


def waits(step: Callable[[], object]) -> str:
    """Return what torch says of a step in which the host waits explicitly, else ""."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=TURNS, default="1.1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=results_folder() / "optimizer.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    params = list(llama(SHAPES[arguments.size], device).module.parameters())
    numel = sum(param.numel() for param in params)
    gradients = [[torch.randn_like(p) * 1e-3 for p in params] for _ in range(SETS)]

    optimizers: dict[str, Contender] = {
        BASE: Contender(torch.optim.AdamW(params, lr=1e-5, fused=True), gradients)
    }
    for fraction in FRACTIONS:
        name = f"MoFO({fraction})"
        ours = MoFO(params, lr=1e-5, update_fraction=fraction)
        optimizers[name] = Contender(ours, gradients)
        optimizers[f"{name}, without the check"] = Contender(ours, gradients, checked=False)
        general = pure(MoFO(params, lr=1e-5, update_fraction=fraction))
        optimizers[f"{name}, pure"] = Contender(general, gradients)
    said: dict[str, dict[str, Any]] = {}
    for name, contender in optimizers.items():
        contender.give_gradients()
        said[name] = held_and_temporary(contender)
        if contender.on_gpu:
            said[name]["waits"] = waits(contender.step) or "no"
        synchronize()

    skipped, counted = TURNS[arguments.size]
    from_idle = interleaved({n: c.step for n, c in optimizers.items()}, counted, warmup=skipped)
    interleaved(optimizers, counted, warmup=skipped)
    times = {name: contender.seconds[skipped:] for name, contender in optimizers.items()}
    rows = []
    for row, idle in zip(ratios(times, BASE), ratios(from_idle, BASE), strict=True):
        contender = optimizers[row["name"]]
        more = said[row["name"]] | contender.queued(skipped)
        if "held" in more:
            more["held"] /= numel
        paths = getattr(contender.optimizer, "_paths", None)
        rows.append(
            {
                **row,
                "from idle, ms": idle["ms"],
                "path": type(paths[0]).__name__ if paths else "",
                **more,
            }
        )
    write(
        arguments.out,
        vars(arguments),
        {"tensors": len(params), "parameters": numel, "rows": rows},
    )


if __name__ == "__main__":
    main()
