"""What MoFO's selection over ranks sends per step: counted here, projected to large machines.

    python -m benchmarks.sharded [--ranks 2] [--bandwidth 25] [--latency 30]

First it runs the selection on gloo ranks of this machine, for TinyLlama's tensors with fewer rows,
counts collectives and bytes and holds them against `cl_mofo.optim.sharded.traffic`. Then it works
out from that formula what a step costs on 8, 64 and 512 ranks, under assumptions it prints.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from benchmarks.record import record
from cl_mofo.optim.selection import count
from cl_mofo.optim.sharded import Traffic, largest_sharded, traffic

COLLECTIVES = [
    name
    for name in dir(dist)
    if name.startswith(("all_", "broadcast", "reduce", "gather", "scatter", "barrier"))
    and callable(getattr(dist, name))
    and not isinstance(getattr(dist, name), type)
]


@dataclass(frozen=True)
class Llama:
    name: str
    layers: int
    hidden: int
    key_value: int
    intermediate: int
    vocabulary: int = 32_000

    def matrices(self) -> list[tuple[int, int]]:
        """What MoFO filters; it leaves the norms alone."""
        h, kv, up = self.hidden, self.key_value, self.intermediate
        layer = [(h, h), (kv, h), (kv, h), (h, h), (up, h), (up, h), (h, up)]
        return [(self.vocabulary, h), *layer * self.layers, (self.vocabulary, h)]

    def norms(self) -> int:
        return 2 * self.layers + 1

    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.matrices()) + self.norms() * self.hidden


TINY = Llama("TinyLlama-1.1B", 22, 2048, 256, 5632)
MODELS = [
    TINY,
    Llama("Llama-2-7B", 32, 4096, 4096, 11008),
    Llama("Llama-2-70B", 80, 8192, 1024, 28672),
]


@contextmanager
def counted():
    """Note the name of every collective of torch.distributed, and the bytes of its buffers."""
    calls: list[tuple[str, int]] = []

    def noted(name, function):
        def call(buffers, *args, **kwargs):
            listed = buffers if isinstance(buffers, list) else [buffers]
            calls.append((name, sum(tensor.nbytes for tensor in listed)))
            return function(buffers, *args, **kwargs)

        return call

    with patch.multiple(dist, **{name: noted(name, getattr(dist, name)) for name in COLLECTIVES}):
        yield calls


def measure(rank, ranks, rows, fraction, repeats, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    generator = torch.Generator().manual_seed(rank)
    sizes = [math.ceil(r / rows) * columns for r, columns in TINY.matrices()]
    parts = [
        torch.randn(size * (rank + 1) // ranks - size * rank // ranks, generator=generator)
        for size in sizes
    ]
    counts = [count(fraction, size) for size in sizes]
    times = []
    for _ in range(repeats + 1):
        dist.barrier()
        began = time.perf_counter()
        with counted() as calls:
            selected = sum(len(index) for index in largest_sharded(parts, counts, sizes, None))
        times.append(time.perf_counter() - began)
    reduced = [size for name, size in calls if name == "all_reduce"]
    gathered = [size for name, size in calls if name == "all_gather"]
    everywhere = torch.tensor(selected)
    dist.all_reduce(everywhere)
    if rank == 0:
        report = {
            "ranks": ranks,
            "tensors": len(sizes),
            "entries": sum(sizes),
            "wanted": sum(counts),
            "selected": int(everywhere),
            "counted": Traffic(len(calls), sum(reduced), sum(gathered))._asdict(),
            "formula": traffic(len(sizes), ranks)._asdict(),
            "milliseconds": round(1000 * statistics.median(times[1:]), 1),
        }
        Path(folder, "report.json").write_text(json.dumps(report))
    dist.destroy_process_group()


@dataclass(frozen=True)
class Cost:
    """What one step sends, as each rank sees it."""

    model: str
    ranks: int
    part: str
    collectives: int
    megabytes_in: float
    megabytes_on_the_wire: float
    milliseconds: float
    share_of_bytes: float
    share_of_time: float


def costs(model: Llama, ranks: int, bandwidth: float, latency: float) -> list[Cost]:
    """Return the selection's cost and that of the check which gradients are finite.

    A ring moves 2 (N-1)/N of an all-reduced buffer through each rank, (N-1)/N of a gathered one.
    """
    others = (ranks - 1) / ranks
    adamw = others * 2 * 4 * model.parameters()  # gradients reduce-scattered, weights gathered
    flags = len(model.matrices()) + model.norms()  # a byte each, all-reduced
    terms = {
        "selection": traffic(len(model.matrices()), ranks),
        "finite check": Traffic(1, flags, 0),
    }
    made = []
    for part, sent in terms.items():
        wire = others * (2 * sent.reduced + sent.gathered)
        seconds = sent.collectives * latency * 1e-6 * math.log2(ranks) + wire / (bandwidth * 1e9)
        made.append(
            Cost(
                model.name,
                ranks,
                part,
                sent.collectives,
                (sent.reduced + sent.gathered / ranks) / 1e6,
                wire / 1e6,
                1e3 * seconds,
                wire / adamw,
                seconds * bandwidth * 1e9 / adamw,
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, help="processes that are started here")
    parser.add_argument("--rows", type=int, default=64, help="by what the rows are divided here")
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bandwidth", type=float, default=25, help="GB/s in and out of each rank")
    parser.add_argument("--latency", type=float, default=30, help="us, times log2(ranks)")
    parser.add_argument("--out", type=Path, help="file or folder instead of benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = (arguments.ranks, arguments.rows, arguments.fraction, arguments.repeats, folder)
        torch.multiprocessing.spawn(measure, settings, nprocs=arguments.ranks)
        measured = json.loads(Path(folder, "report.json").read_text())
    projected = [
        cost
        for model in MODELS
        for ranks in (8, 64, 512)
        for cost in costs(model, ranks, arguments.bandwidth, arguments.latency)
    ]
    counted = {name: measured.pop(name) for name in ("counted", "formula")}
    record(
        "sharded",
        vars(arguments),
        [measured | counted["counted"]],
        more={"Added to one step by MoFO, per rank (projected)": [asdict(c) for c in projected]},
        out=arguments.out,
        parameters={model.name: model.parameters() for model in MODELS},
        **counted,
    )
    print(
        f"Assumed: {arguments.bandwidth:g} GB/s in and out of each rank; {arguments.latency:g} us x"
        " log2(ranks) for each collective; rings, in which a rank passes on 2 (N-1)/N of what is"
        " all-reduced and (N-1)/N of what is gathered; nothing overlaps. The shares are of the"
        " bytes that AdamW's step moves, 8 (N-1)/N per parameter (float32 gradients"
        " reduce-scattered, weights gathered), and of the time they take at that bandwidth without"
        " any latency. What each rank computes on its own part is not in the table."
    )
    if counted["counted"] != counted["formula"] or measured["selected"] != measured["wanted"]:
        raise SystemExit("what was counted is not what the formula says")


if __name__ == "__main__":
    main()
