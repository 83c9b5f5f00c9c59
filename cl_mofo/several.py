"""Run several checked runs one after another, each into its own folder; go on where it was stopped.

A finished run is skipped, an unfinished one goes on from its last checkpoint, and what another
process is running is left to it (claim.py), so that the same command goes on, also several times at
once.

Where a launcher started several processes, all make each run together; the first decides which.
"""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_mofo.claim import MOVE, State, claim, manifest_of, state
from cl_mofo.config import DataConfig, Recipe
from cl_mofo.data.plan import plan_tasks
from cl_mofo.data.suites import load_suite
from cl_mofo.discovery import registry
from cl_mofo.errors import (
    NotWrittenError,
    OutOfMemoryError,
    StoppedError,
    TrainingError,
    UserError,
)
from cl_mofo.folder import RECIPE, RunFolder
from cl_mofo.observer import Observer

if TYPE_CHECKING:
    from cl_mofo.engine.ranks import Ranks

SKIPPED = {
    None: "another process is running it",
    State.FINISHED: "already finished",
    State.DIVERGED: "it diverged",
}


@dataclass(frozen=True)
class Swept:
    """What became of some runs, by their names; of those that another process is running, nothing.

    Args:
        results: of the finished ones, as `cl_mofo.run` returns them.
        failed: why each of the others failed.
        diverged: those of them that diverged, and are not tried again.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    diverged: set[str] = field(default_factory=set)


def run_all(runs: Mapping[str, Recipe], root: Path, observer: Observer) -> Swept:
    """Execute checked runs, each into its folder below `root`, or go on with them.

    Raises:
        UserError: a folder holds something else, or a run's model or data have to be mended.
        TrainingError: as for `run_sweep`, on several ranks.
        LostRankError: another process ended or does not answer.
    """
    ranks = _meet(runs)
    from cl_mofo.engine.ranks import watching

    with watching():
        with ranks.together():
            if ranks.first:
                _check_folders(root, runs)
        swept = Swept()
        left = [
            name
            for number, name in enumerate(runs, 1)
            if not _turn(number, runs, root / name, ranks, observer, swept)
        ]
        for name in left:  # by now some of it is done, or was stopped
            number = list(runs).index(name) + 1
            _turn(number, runs, root / name, ranks, observer, swept, again=True)
        return replace(swept, results={n: swept.results[n] for n in runs if n in swept.results})


def _turn(
    number: int,
    runs: Mapping[str, Recipe],
    folder: Path,
    ranks: Ranks,
    observer: Observer,
    swept: Swept,
    *,
    again: bool = False,
) -> bool:
    """Make a run, go on with it or note what is known of it; return whether no other is at it.

    If another is at it `again`, that has been told.
    """
    recipe = runs[folder.name]
    with _claimed(folder, recipe, ranks) as (found, known):
        if found is None and again:
            return False
        observer.next_run(number, len(runs), recipe, folder, SKIPPED.get(found))
        if found is State.FINISHED:
            swept.results[folder.name] = known | {"folder": str(folder)}
        elif found is State.DIVERGED:
            swept.failed[folder.name] = str(known["diverged"])
            swept.diverged.add(folder.name)
        elif found is State.OPEN:
            _attempt(recipe, folder, ranks, observer, swept, len(runs))
        return found is not None


def _attempt(
    recipe: Recipe, folder: Path, ranks: Ranks, observer: Observer, swept: Swept, total: int
) -> None:
    """Make one of so many runs, or go on with it, and note what became of it."""
    name = folder.name
    begun = ranks.agree((folder / RECIPE).is_file())
    try:
        swept.results[name] = _run(recipe, folder, observer, resume=begun)
    except (TrainingError, MemoryError, RuntimeError) as error:
        says_all = isinstance(error, TrainingError)
        shared = says_all and not isinstance(error, OutOfMemoryError)
        if ranks.count > 1 and not shared:  # then the ranks are not at one place
            raise
        where = "" if says_all else f" ({type(error).__name__}; more in its run.log)"
        swept.failed[name] = f"{error}{where}"
        if shared and not isinstance(error, NotWrittenError):
            swept.diverged.add(name)
        observer.failed(error)
    except (StoppedError, KeyboardInterrupt) as error:
        again = f"The command that began this goes on with all {total} runs"
        raise type(error)(f"{error}\n{again}" if str(error) else again) from None
    gc.collect()  # the model and its optimizer are in cycles; the next needs the room


def _meet(runs: Mapping[str, Recipe]) -> Ranks:
    """Let the processes meet that make the runs together, for all runs at once.

    Raises:
        UserError: there are several, and a run's engine is for one.
    """
    from cl_mofo.engine.ranks import launched
    from cl_mofo.experiment import meet

    ranks = launched()
    if ranks.count == 1:
        return ranks
    alone = [name for name, recipe in runs.items() if recipe.engine.kind == "torch"]
    engines = [runs[name].engine for name in alone or runs]
    try:
        return meet(
            max(engines, key=lambda engine: engine.timeout_minutes),
            on_cpu=all(recipe.model.device == "cpu" for recipe in runs.values()),
        )
    except UserError as error:
        raise UserError(f"{which(alone, len(runs))}: {error}" if alone else str(error)) from error


@contextmanager
def _claimed(
    folder: Path, recipe: Recipe, ranks: Ranks
) -> Iterator[tuple[State | None, dict[str, Any]]]:
    """Claim a run on the first rank; give all ranks its state and what is known of a done one.

    The state is None if another process is running it.
    """
    with ExitStack() as stack:
        found: State | None = None
        known: Mapping[str, Any] = {}
        with ranks.together():
            if ranks.first:
                free = stack.enter_context(claim(folder)) and not RunFolder.in_use(folder)
                found = state(folder, recipe) if free else None
                if found is State.FINISHED:
                    known = json.loads((folder / "results.json").read_text("utf-8"))
                elif found is State.DIVERGED:
                    known = manifest_of(folder)
        name, known = ranks.agree([found and found.name, dict(known)])
        yield None if name is None else State[name], dict(known)


def _check_folders(root: Path, runs: Mapping[str, Recipe]) -> None:
    """Refuse what cannot be run into, for all runs at once; what another process runs is its own.

    Raises:
        UserError: naming each folder that holds something else than its run.
    """
    if any((root / name).is_file() for name in ("recipe.yaml", "results.json")):
        raise UserError(f"{root}: is the folder of one run, and these are several. {MOVE}")
    if not root.is_dir():
        RunFolder.check(root)
    problems = []
    for name, recipe in runs.items():
        try:
            state(root / name, recipe)
            data = manifest_of(root / name).get("data")
            if data is not None and data != data_of(recipe):
                raise UserError(f"{root / name}: holds a run on other data than these. {MOVE}")
        except UserError as error:
            # Between two files of a live run its folder may look like anything.
            with claim(root / name) as free:
                if free and not RunFolder.in_use(root / name):
                    problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _run(recipe: Recipe, folder: Path, observer: Observer, *, resume: bool) -> dict[str, Any]:
    from cl_mofo.experiment import run

    try:
        return run(recipe, out=folder, observer=observer, resume=resume)
    except UserError as error:
        raise UserError(f"run {folder.name}: {error}") from error


def data_of(recipe: Recipe) -> Mapping[str, str]:
    """Return the hashes of a recipe's data, which are read and checked once."""
    tasks = tuple(plan.task.name for plan in plan_tasks(recipe, registry(recipe.imports)))
    return _hashes(recipe.data, tasks)


def forget_data() -> None:
    """Read all data again when they are asked for next: files may have changed."""
    _hashes.cache_clear()


@functools.lru_cache(maxsize=64)
def _hashes(data: DataConfig, tasks: tuple[str, ...]) -> Mapping[str, str]:
    return load_suite(data, tasks).hashes


def which(names: Sequence[str], total: int) -> str:
    """Name some runs of so many, as a message begins."""
    if len(names) == total > 1:
        return f"every run of the {total}"
    return f"run{'s' * (len(names) > 1)} {', '.join(names)}"
