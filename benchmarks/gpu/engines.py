"""Time and memory of a training step on each engine, with AdamW and with MoFO.

    python -m benchmarks.gpu.engines [--size 1.1b] [--device cuda] [--engines torch zero2 fsdp]
    torchrun --standalone --nproc-per-node 2 -m benchmarks.gpu.engines --size small --device cpu \
        --engines zero0 zero1 zero2 zero3 fsdp

A step is the loop's (cl_mofo/loop.py): micro-batches, the gradient's norm, clipping, the optimizer.
The model has TinyLlama's shape and random weights. What is held per parameter is counted from the
tensors there are, not from the allocator, so that a CPU shows it too. (`--size small` is for that:
of `tiny`'s tensors DeepSpeed's stage 3 spreads only the largest.)
"""

import argparse
import gc
import math
import statistics
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.gpu.held import per_parameter, storages
from benchmarks.gpu.llama import SIZES, Size, random_batch, random_model
from benchmarks.gpu.record import results_folder, write
from cl_mofo.config import EngineConfig, OptimizerConfig
from cl_mofo.data.batches import MicroBatch, unsupervised
from cl_mofo.engine import Engine, make_engine
from cl_mofo.engine.ranks import join
from cl_mofo.model import LanguageModel, summed_loss, supervised_logits
from cl_mofo.strategies.mofo import MoFO
from cl_mofo.strategy import Strategy

ENGINES = {
    "torch": EngineConfig(),
    **{f"zero{stage}": EngineConfig(kind="deepspeed", zero_stage=stage) for stage in range(4)},
    "zero2-offload": EngineConfig(kind="deepspeed", zero_stage=2, offload="optimizer"),
    "zero3-offload": EngineConfig(kind="deepspeed", zero_stage=3, offload="parameters"),
    "fsdp": EngineConfig(kind="fsdp"),
    "fsdp-offload": EngineConfig(kind="fsdp", offload="parameters"),
}
OPTIMIZERS: dict[str, Strategy] = {"AdamW": Strategy(), "MoFO(0.05)": MoFO(MoFO.Config(0.05))}


class Step:
    """The loop's step, and what it held and took."""

    def __init__(self, engine: Engine, model: LanguageModel, batch: list[MicroBatch]) -> None:
        self.engine, self.model = engine, model
        ranks = engine.ranks
        self.supervised = sum(micro.supervised for micro in batch)
        own = batch[ranks.rank :: ranks.count]
        spare = math.ceil(len(batch) / ranks.count) - len(own)  # passes are collective calls
        self.own = [micro.to(model.device) for micro in [*own, *[unsupervised(batch[0])] * spare]]
        self.held: dict[str, dict[str, list[int]]] = {}

    def gradient(self, *, count: bool = False) -> None:
        self.engine.discard_gradients()
        for number, micro in enumerate(self.own):
            last = number == len(self.own) - 1
            self.engine.micro_batch(last=last)
            with self.model.autocast():
                logits, labels = supervised_logits(self.engine.module, micro, self.engine.forward)
            loss = summed_loss(logits, labels) / self.supervised
            self.engine.backward(loss)
            del logits, loss
            if count and number == 0 and not last:
                self.held["between micro-batches"] = storages()

    def update(self) -> None:
        norm = self.engine.norm()
        if not math.isfinite(norm.item()):
            raise FloatingPointError("the gradient is not finite")
        clipped = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        for gradient in self.engine.gradients().values():
            gradient.mul_(clipped.to(gradient.device))
        self.engine.step()

    def timed(self) -> tuple[float, float]:
        """Return the milliseconds of the whole step, and those after its backward passes."""
        with clock(self.model.device) as marks:
            marks()
            self.gradient()
            marks()
            self.update()
            marks()
        first, second = marks.between
        return first + second, second

    def counted(self) -> None:
        """Take a step, and note what is held at its stations."""
        self.gradient(count=True)
        self.held["before the update"] = storages()
        self.update()
        self.engine.discard_gradients()
        self.held["between steps"] = storages()
        with self.engine.whole():
            self.held["while evaluating"] = storages()


class Marks:
    """Points in time, of CUDA's stream or of the host."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.points: list = []
        self.between: list[float] = []

    def __call__(self) -> None:
        if self.cuda:
            self.points.append(torch.cuda.Event(enable_timing=True))
            self.points[-1].record()
        else:
            self.points.append(time.perf_counter())


@contextmanager
def clock(device: torch.device) -> Iterator[Marks]:
    marks = Marks(device)
    yield marks
    pairs = zip(marks.points, marks.points[1:], strict=False)
    if marks.cuda:
        torch.cuda.synchronize()
        marks.between = [first.elapsed_time(second) for first, second in pairs]
    else:
        marks.between = [1000 * (second - first) for first, second in pairs]


def measure(name: str, optimizer: str, size: Size, kind: str) -> dict:
    ranks = join(ENGINES[name])
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated() if kind == "cuda" else None
    model = random_model(size, device)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    engine = make_engine(ENGINES[name], ranks, on_cpu=model.device.type == "cpu")
    settings = OptimizerConfig()
    engine.prepare(model, lambda named: OPTIMIZERS[optimizer].make_optimizer(named, settings))
    step = Step(engine, model, random_batch(size))
    try:
        for _ in range(size.warmup):
            step.timed()
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = [step.timed() for _ in range(size.steps)]
        peak = torch.cuda.max_memory_allocated() if kind == "cuda" else None
        step.counted()
    finally:
        engine.close()
    whole, update = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "engine": name,
        "optimizer": optimizer,
        "ranks": ranks.count,
        "parameters": parameters,
        "step_ms": round(whole, 3),
        "step_ms_range": [round(f(t for t, _ in times), 3) for f in (min, max)],
        "update_ms": round(update, 3),
        "tokens_per_second": round(size.examples * size.tokens / whole * 1000),
        "gib": None if peak is None else {"before": before / 2**30, "peak": peak / 2**30},
        "bytes_per_parameter": {
            when: per_parameter(held, parameters) for when, held in step.held.items()
        },
    }


def shares(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Return by engine how much longer MoFO takes than AdamW: 0.05 is 5%."""
    times = {(row["engine"], row["optimizer"]): row for row in rows if "error" not in row}
    return {
        engine: {
            key: round(times[engine, "MoFO(0.05)"][key] / times[engine, "AdamW"][key] - 1, 4)
            for key in ("step_ms", "update_ms")
        }
        for engine in ENGINES
        if all((engine, optimizer) in times for optimizer in OPTIMIZERS)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["torch", "zero2", "fsdp"])
    parser.add_argument("--out", type=Path, default=results_folder() / "engines.json")
    arguments = parser.parse_args()
    # Of torch's collectives, as FSDP and DeepSpeed call them.
    warnings.simplefilter("ignore", FutureWarning)
    rows = []
    for name in arguments.engines:
        for optimizer in OPTIMIZERS:
            gc.collect()
            gc.freeze()  # what there is so far is not looked through again
            try:
                size = SIZES[arguments.size]
                rows.append(measure(name, optimizer, size, arguments.device))
            except Exception as error:
                traceback.print_exc()
                told = f"{type(error).__name__}: {error}"
                rows.append({"engine": name, "optimizer": optimizer, "error": told})
            gc.unfreeze()
            write(arguments.out, vars(arguments), {"rows": rows, "mofo_over_adamw": shares(rows)})
    if dist.is_initialized():
        dist.destroy_process_group()
    if any("error" in row for row in rows):
        raise SystemExit("not everything could be measured")


if __name__ == "__main__":
    main()
