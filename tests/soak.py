"""Kill runs at random moments, go on with each, and compare with the run that nobody disturbed.

    python -m tests.soak --kills 50 --jobs 2

For each strategy a small run of two tasks is made once in peace. Then it is killed as many times by
SIGKILL at a random moment, or at an aimed one (`AIMS`), gone on with, sometimes killed again, and
in the end compared byte for byte. Prints how often which phase was hit; fails on any difference.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tests.forked import finish, go_on, run, start

STRATEGIES = ("mofo", "replay+mofo", "ewc+mofo", "gem+mofo", "hft", "lora+mofo")
BASE = {
    "model": {"path": "tiny", "device": "cpu"},
    "data": {"suite": "trace-mini", "train_limit": 16, "test_limit": 6},
    "tasks": {"only": ["FOMC", "Py150"], "epochs": 2},
    "optimizer": {"lr": 5e-4, "batch_size": 8},
    "evaluation": {"initial": True, "batch_size": 2, "cache": False},
    "checkpoint": {"every_steps": 1},
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "replay": {"ratio": 0.5},
    "ewc": {"fisher_examples": 8},
    "gem": {"memory_examples": 4, "refresh": 2},
    "lora": {"rank": 4, "dropout": 0.1},  # so that what is drawn at random matters
}
AGAIN = 0.3
"""How often a run that goes on is killed once more; three times at most."""
SECONDS = 120
POLL = 0.0005


def recipe_of(strategy: str) -> dict[str, Any]:
    """Return the recipe of a strategy's run."""
    own = {name: SETTINGS[name] for name in strategy.split("+") if name in SETTINGS}
    return {**BASE, **own, "strategy": strategy}


# What is looked at while a run is under way. Each says whether its moment has come.


def _writing(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("0*.partial"))


def _replacing(folder: Path) -> bool:
    return any(p.is_file() for p in folder.glob("*.partial")) or any(
        (folder / "checkpoints").glob("*.json.partial")
    )


def _changed(name: str) -> Callable[[Path], bool]:
    """Say whether a file has been replaced since the last look."""
    before: int | None = None

    def look(folder: Path) -> bool:
        nonlocal before
        try:
            now = (folder / name).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        changed = before is not None and before != now
        before = now
        return changed

    return look


def _logged(word: str) -> Callable[[Path], bool]:
    def look(folder: Path) -> bool:
        return f" {word}" in last_line(folder)

    return look


def _begun(folder: Path) -> bool:
    return (folder / "run.log").exists() and not (folder / "checkpoints").exists()


def _clearing(folder: Path) -> bool:
    return _ending(folder) and _finished(folder / "manifest.json")


def _ending(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("model.partial", "model", "figures"))


AIMS: Mapping[str, tuple[Callable[[], Callable[[Path], bool]], int]] = {
    "a checkpoint is being written": (lambda: _writing, 40),
    "another file is being written": (lambda: _replacing, 8),
    "a test set was just kept": (lambda: _changed("checkpoints/progress.json"), 4),
    "results were just written": (lambda: _changed("results.json"), 3),
    "between two test sets": (lambda: _logged("INFO after"), 40),
    "nothing is saved yet": (lambda: _begun, 8),
    "the model and the figures are written": (lambda: _ending, 400),
    "all is done but for the checkpoints that go": (lambda: _clearing, 1),
}
"""How a moment is seen, and how many such looks at most are let pass."""


def last_line(folder: Path) -> str:
    """Return the last line of a run's log."""
    try:
        return (folder / "run.log").read_text().rstrip().rpartition("\n")[2]
    except FileNotFoundError:
        return ""


def phase(folder: Path) -> str:
    """Say from what lies in a folder what the run in it was doing when it was killed."""
    if not (folder / "recipe.yaml").exists():
        return "start"
    if _finished(folder / "manifest.json"):
        return "clearing"
    if _writing(folder):
        return "checkpoint"
    if any(p for p in folder.rglob("*.partial") if p.is_file()):
        return "other file"
    results = folder / "results.json"
    if not results.exists():
        return "start"
    if json.loads(results.read_text())["finished"]:
        return "end"
    lines = [line.split(" INFO ")[-1] for line in (folder / "run.log").read_text().splitlines()]
    told = [line for line in lines if line.startswith(("after", "learning", "checkpoint"))]
    if not told or told[-1].startswith("after"):
        return "evaluation" if told else "first evaluation"
    task = next(line for line in reversed(lines) if line.startswith(("learning", "going on")))
    ended = (told[-1].endswith("-01") and "FOMC" in task) or told[-1].endswith("-02")
    return "evaluation" if ended else "training"


def _finished(manifest: Path) -> bool:
    return manifest.exists() and "finished" in json.loads(manifest.read_text())


@dataclass
class Outcome:
    """What came of a run that was killed.

    Args:
        strategy: which.
        phases: what each kill interrupted.
        wrong: what differs from the undisturbed run, or which exit code there was; empty if all is
            well.
        folder: where it lies.
    """

    strategy: str
    phases: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    folder: Path = Path()


@dataclass(frozen=True)
class Undisturbed:
    """A run in peace: its recipe, its folder, and how many seconds it took."""

    recipe: Mapping[str, Any]
    folder: Path
    seconds: float


def undisturbed(recipe: Mapping[str, Any], root: Path) -> Undisturbed:
    """Make a run in peace.

    Raises:
        RuntimeError: it fails.
    """
    strategy = recipe["strategy"]
    folder = root / strategy / "undisturbed"
    began, told = time.monotonic(), folder.with_suffix(".txt")
    code = finish(start(run, recipe, folder, told=told), SECONDS)
    if code:
        raise RuntimeError(f"{strategy}: exit code {code}; see {told}")
    return Undisturbed(recipe, folder, time.monotonic() - began)


def disturbed(peaceful: Undisturbed, folder: Path, rng: random.Random) -> Outcome:
    """Kill a run once or more, go on until it is done, and compare."""
    outcome = Outcome(peaceful.recipe["strategy"], folder=folder)
    kills = 1
    while kills < 3 and rng.random() < AGAIN:
        kills += 1
    told = folder.with_suffix(".txt")
    for _ in range(100):  # a moment may lie behind the end; then there is another run
        process = start(go_on, peaceful.recipe, folder, told=told)
        if _killed(process, folder, peaceful.seconds, rng):
            outcome.phases.append(phase(folder))
        elif process.exitcode:
            outcome.wrong.append(f"exit code {process.exitcode}: {told.read_text()[-500:]}")
            return outcome
        elif not outcome.phases:
            shutil.rmtree(folder)
        else:
            break
        if len(outcome.phases) == kills:
            break
    code = finish(start(go_on, peaceful.recipe, folder, told=told), SECONDS)
    if code:
        outcome.wrong.append(f"exit code {code}: {told.read_text()[-500:]}")
    else:
        outcome.wrong += differences(peaceful.folder, folder)
    return outcome


def _killed(process: Any, folder: Path, seconds: float, rng: random.Random) -> bool:
    """Kill a process at a random moment; say whether it was still there."""
    until = time.monotonic() + SECONDS
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, seconds))
    else:
        look, most = AIMS[rng.choice(list(AIMS))]
        aim, times = look(), rng.randint(1, most)
        while process.is_alive() and time.monotonic() < until:
            times -= aim(folder)
            if times <= 0:
                break
            time.sleep(POLL)
        time.sleep(rng.choice([0, rng.uniform(0, 0.02)]))
    process.kill()
    process.join()
    return bool(process.exitcode == -9)


def differences(expected: Path, found: Path) -> list[str]:
    """Return in what a finished run's folder differs from another's, but for clocks."""
    names = [
        {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        for folder in (expected, found)
    ]
    wrong = [f"{name} is too few" for name in names[0] - names[1]]
    wrong += [f"{name} is too many" for name in names[1] - names[0]]
    for name in sorted(names[0] & names[1] - {"manifest.json", "run.log"}):
        if _content(expected / name) != _content(found / name):
            wrong.append(f"{name} differs")
    return wrong


def _content(file: Path) -> Any:
    if file.name == "results.json":
        return {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"}
    if file.name == "metrics.parquet":
        return pd.read_parquet(file).drop(columns="seconds").to_json(double_precision=15)
    return file.read_bytes()


def soak(
    recipes: Sequence[Mapping[str, Any]], kills: int, seed: int, jobs: int, root: Path
) -> list[Outcome]:
    """Kill as many runs of each recipe, and return what came of each."""
    with ThreadPoolExecutor(jobs) as pool:
        peaceful = list(pool.map(lambda recipe: undisturbed(recipe, root), recipes))

        def one(task: tuple[Undisturbed, int]) -> Outcome:
            before, number = task
            strategy = before.recipe["strategy"]
            folder = root / strategy / f"{number:03d}"
            rng = random.Random(f"{seed} {strategy} {number}")
            try:
                outcome = disturbed(before, folder, rng)
            except Exception as error:
                outcome = Outcome(strategy, wrong=[repr(error)], folder=folder)
            if not outcome.wrong:
                shutil.rmtree(folder)
            mark = "FAILED" if outcome.wrong else "same"
            print(f"{strategy} {number}: {', '.join(outcome.phases)}: {mark}", flush=True)
            return outcome

        tasks = [(each, number) for number in range(kills) for each in peaceful]
        return list(pool.map(one, tasks))


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a table: strategies by phases, how often each was hit, and how many ended alike."""
    hits = {s: Counter[str]() for s in dict.fromkeys(o.strategy for o in outcomes)}
    for outcome in outcomes:
        hits[outcome.strategy].update(outcome.phases)
    phases = sorted({p for counter in hits.values() for p in counter})
    lines = [["strategy", *phases, "kills", "runs", "identical"]]
    for strategy, counter in hits.items():
        ours = [o for o in outcomes if o.strategy == strategy]
        counts = [counter[p] for p in phases]
        same = sum(not o.wrong for o in ours)
        lines.append([strategy, *map(str, [*counts, counter.total(), len(ours), same])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50, help="killed runs of each strategy")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where; by default a fresh temporary folder")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {options.seed}, in {root}", flush=True)
    recipes = [recipe_of(strategy) for strategy in options.strategies.split(",")]
    began = time.monotonic()
    outcomes = soak(recipes, options.kills, options.seed, options.jobs, root)
    print(table(outcomes))
    print(f"{len(outcomes)} runs in {time.monotonic() - began:.0f} s")
    bad = [o for o in outcomes if o.wrong]
    for outcome in bad:
        print(f"{outcome.folder}: killed in {outcome.phases}: {'; '.join(outcome.wrong)}")
    if not bad:
        shutil.rmtree(root)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
