"""Hand-made `results.json` files for the tests of the report."""

import json
from pathlib import Path
from typing import Any

from cl_mofo.report import RunResults, load_results

TRACE = (
    "C-STANCE",
    "FOMC",
    "MeetingBank",
    "Py150",
    "ScienceQA",
    "NumGLUE-cm",
    "NumGLUE-ds",
    "20Minuten",
)

# Three seeds on two tasks. By hand:    OP              BWT             learned
#   seed 1  80 | 60 90                  (60+90)/2 = 75  60-80 = -20     (80+90)/2 = 85
#   seed 2  70 | 66 94                  80              -4              82
#   seed 3  90 | 60 80                  70              -30             85
SEEDS = {
    1: [[80, None], [60, 90]],
    2: [[70, None], [66, 94]],
    3: [[90, None], [60, 80]],
}


def record(scores: list[list[Any]], **changes: Any) -> dict[str, Any]:
    """Return what `results.json` holds for some scores; OP and BWT by their definitions."""
    figures = {} if "op" in changes else op_and_bwt(scores)
    return {
        "schema": 1,
        "strategy": "mofo",
        "seed": 1,
        "suite": "trace-mini",
        "model": "tiny",
        "tasks": [f"task{i}" for i in range(len(scores))],
        "scores": scores,
        "initial": None,
        "finished": None not in scores[-1],
        **figures,
        **changes,
    }


def op_and_bwt(scores: list[list[Any]]) -> dict[str, Any]:
    """Compute OP and BWT after each task learned."""
    learned = sum(any(cell is not None for cell in row) for row in scores)
    return {
        "op": [sum(scores[t][: t + 1]) / (t + 1) for t in range(learned)],
        "bwt": [
            sum(scores[t][i] - scores[i][i] for i in range(t)) / t if t else None
            for t in range(learned)
        ],
    }


def write(folder: Path, data: Any) -> Path:
    """Write a run folder and return it."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def make(folder: Path, scores: list[list[Any]], recipe: str = "", **changes: Any) -> RunResults:
    """Write a run folder and load it."""
    write(folder, record(scores, **changes))
    if recipe:
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return load_results(folder)


def three_seeds(folder: Path, strategy: str = "mofo") -> list[RunResults]:
    """Return the three runs worked out above."""
    return [
        make(folder / f"{strategy}-{seed}", scores, strategy=strategy, seed=seed)
        for seed, scores in SEEDS.items()
    ]


def trace_run(folder: Path, learned: int = 8, **changes: Any) -> RunResults:
    """Return a run over TRACE's eight tasks: 88.5 on the diagonal, 3 points lost per later task."""
    scores = [
        [88.5 - 3 * (t - i) if i <= t < learned else None for i in range(8)] for t in range(8)
    ]
    return make(folder, scores, tasks=list(TRACE), **changes)
