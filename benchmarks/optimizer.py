"""How long a MoFO step takes beside the step of torch's fused AdamW, as a ratio.

    python benchmarks/optimizer.py [--fraction 0.05] [--threads 2] [--repeats 9]

Both step the same tensors, in turns, in one process; the median of the repeats counts. The tensors
are one of TinyLlama-1.1B's decoder layers.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from cl_mofo import MoFO

SHAPES = {
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


def parameters(device: str) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(device))
        for shape in SHAPES.values()
    ]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
    return made


def seconds(step, device: str) -> float:
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    optimizers = {
        "AdamW(fused)": torch.optim.AdamW(parameters(arguments.device), lr=1e-5, fused=True),
        "MoFO": MoFO(parameters(arguments.device), lr=1e-5, update_fraction=arguments.fraction),
    }
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(arguments.repeats + 2):
        for name, optimizer in optimizers.items():
            taken = seconds(optimizer.step, arguments.device)
            if turn >= 2:  # the first steps make the state
                times[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    ratios = [m / a for m, a in zip(times["MoFO"], times["AdamW(fused)"], strict=True)]
    print(
        json.dumps(
            {
                "entries": sum(torch.Size(shape).numel() for shape in SHAPES.values()),
                "update_fraction": arguments.fraction,
                "milliseconds": {name: round(1000 * m, 2) for name, m in medians.items()},
                "ratio": round(medians["MoFO"] / medians["AdamW(fused)"], 2),
                "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "device": arguments.device,
                "threads": arguments.threads,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
