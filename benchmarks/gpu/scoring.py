"""Answering on a GPU: TRACE's way and ours, as many new tokens each.

    python -m benchmarks.gpu.scoring [--size 1.1b] [--device cuda]

Random weights of TinyLlama's shape answer random prompts of TRACE's lengths in bfloat16. They end
no answer, so all ways generate the same number of tokens for each: what shows is the part of the
gain that batches and cache have, not that of budgets, and nothing of scores (see
`benchmarks.scoring`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.gpu.record import results_folder, write
from benchmarks.scoring import measure
from benchmarks.setting import setting

LIMITS = {"1.1b": (16, 64), "tiny": (4, 4)}
"""By size: examples of a task, and new tokens for each."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=LIMITS, default="1.1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=results_folder() / "scoring.json")
    arguments = parser.parse_args()
    examples, tokens = LIMITS[arguments.size]
    assignments = [f"data.test_limit={examples}", f"tasks.answer_tokens={tokens - 1}"]
    made = setting(f"random:{arguments.size}", None, assignments, device=arguments.device)
    made.language_model.module.eval()
    rows, by_task = measure(made, made.language_model, tokens)
    write(arguments.out, vars(arguments), {"rows": rows, "more": {"By task": by_task}})


if __name__ == "__main__":
    main()
