"""Run the list of runs that one recipe describes, one after another; go on where it was stopped.

The recipe's key `sweep` says which runs (expansion.py). Each has its own folder, named after it. A
finished one is skipped, an unfinished one goes on from its last checkpoint, and what another
process is running is left to it (claim.py), so that the same command goes on, also several times
at once.

Where a launcher started several processes, all make each run together; the first decides which.
"""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_mofo.claim import MOVE, State, claim, manifest_of, state
from cl_mofo.config import SWEEP, DataConfig, Recipe
from cl_mofo.data.plan import plan_tasks
from cl_mofo.data.suites import load_suite
from cl_mofo.discovery import registry
from cl_mofo.errors import OutOfMemoryError, StoppedError, TrainingError, UserError
from cl_mofo.expansion import Sweep, read_sweep, strategy_of
from cl_mofo.folder import RECIPE, RunFolder
from cl_mofo.mappings import merge
from cl_mofo.observer import Observer
from cl_mofo.recipes import Request, read_request
from cl_mofo.resolve import resolve
from cl_mofo.strategy import parse_names

if TYPE_CHECKING:
    from cl_mofo.engine.ranks import Ranks

SKIPPED = {
    None: "another process is running it",
    State.FINISHED: "already finished",
    State.DIVERGED: "it diverged",
}


def run_sweep(
    recipe: Request | Mapping[str, Any] | str | Path,
    *,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> list[dict[str, Any]]:
    """Execute the runs of a recipe with the key `sweep`, each into its folder below `out`.

    Args:
        recipe: a mapping, the name or path of a recipe, or `read_request`'s recipe with options.
        out: the folder of the runs' folders, which may hold others; by default
            `outputs/<the recipe's name>`, or `outputs/sweep` for a mapping.
        observer: told what happens.

    Returns:
        what `cl_mofo.run` returns for each run, in their order; those that another process is
        running are left out.

    Raises:
        UserError: something has to be mended; if it is in the recipe, the data or the folders,
            then before the first run, for all runs at once.
        TrainingError: runs failed: they diverged, now or before, or ended in an error such as that
            memory ran out; all others are done. On several ranks an error other than that
            training diverged ends the sweep.
        LostRankError: another process of the sweep ended or does not answer.
    """
    if not isinstance(recipe, Request):
        recipe = read_request(recipe if isinstance(recipe, Mapping) else str(recipe))
    runs = plan_sweep(recipe)
    root = Path("outputs", recipe.name or "sweep") if out is None else Path(out)
    ranks = _meet(runs)
    from cl_mofo.engine.ranks import watching

    with watching():
        return _execute(runs, root, ranks, observer if observer and ranks.first else Observer())


def _execute(
    runs: Mapping[str, Recipe], root: Path, ranks: Ranks, observer: Observer
) -> list[dict[str, Any]]:
    with ranks.together():
        if ranks.first:
            _check_folders(root, runs)
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    for number, (name, checked) in enumerate(runs.items(), 1):
        folder = root / name
        with _claimed(folder, checked, ranks) as (found, known):
            observer.next_run(number, len(runs), checked, folder, SKIPPED.get(found))
            if found is State.FINISHED:
                results.append(known | {"folder": str(folder)})
            elif found is State.DIVERGED:
                failed.append(f"run {name}: {known['diverged']}")
            elif found is State.OPEN:
                begun = ranks.agree((folder / RECIPE).is_file())
                try:
                    results.append(_run(checked, folder, observer, resume=begun))
                except (TrainingError, MemoryError, RuntimeError) as error:
                    says_all = isinstance(error, TrainingError)
                    shared = says_all and not isinstance(error, OutOfMemoryError)
                    if ranks.count > 1 and not shared:  # then the ranks are not at one place
                        raise
                    where = "" if says_all else f" ({type(error).__name__}; more in its run.log)"
                    failed.append(f"run {name}: {error}{where}")
                    observer.failed(error)
                except (StoppedError, KeyboardInterrupt) as error:
                    again = f"The command that began this goes on with all {len(runs)} runs"
                    raise type(error)(f"{error}\n{again}" if str(error) else again) from None
                gc.collect()  # the model and its optimizer are in cycles; the next needs the room
    observer.swept(root)
    if failed:
        told = f"{len(failed)} of {len(runs)} runs failed, which stopped no other:"
        again = f"One that diverged is not run again until its folder in {root} is deleted."
        raise TrainingError("\n".join([told, *failed, again]))
    return results


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
        raise UserError(f"{_which(alone, len(runs))}: {error}" if alone else str(error)) from error


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


def plan_sweep(request: Request) -> dict[str, Recipe]:
    """Return the runs that are asked for, each by its name, checked with all its data.

    What the command line sets holds for every run. A key that it sets varies no more, and a
    strategy that it names selects the runs of that strategy if the sweep says which there are.

    Raises:
        UserError: naming everything that is wrong, and in which runs.
    """
    sweep = read_sweep(merge(request.given, request.asked).get(SWEEP))
    given, asked = (
        {key: value for key, value in keys.items() if key != SWEEP}
        for keys in (request.given, request.asked)
    )
    wanted = asked.pop("strategy", None)
    if wanted is not None and not sweep.names_strategies:
        given["strategy"], wanted = wanted, None
    vary = {key: _asked_value(asked, key, values) for key, values in sweep.vary.items()}
    raw = Sweep(sweep.rows, vary).over(given)
    if wanted is not None:
        raw = _selected(raw, str(wanted))
    _hashes.cache_clear()
    recipes: dict[str, Recipe] = {}
    problems: dict[str, list[str]] = {}
    for name, run in raw.items():
        try:
            recipe = resolve(replace(request, given=run, asked=asked).complete())
            _data_of(recipe)
        except UserError as error:
            problems.setdefault(str(error), []).append(name)
            continue
        if twin := next((n for n, other in recipes.items() if other == recipe), None):
            problems.setdefault(f"the run is the same as {twin}", []).append(name)
        recipes[name] = recipe
    if problems:
        raise UserError("\n".join(f"{_which(n, len(raw))}: {p}" for p, n in problems.items()))
    return recipes


def _data_of(recipe: Recipe) -> Mapping[str, str]:
    """Return the hashes of a recipe's data, which are read and checked once."""
    tasks = tuple(plan.task.name for plan in plan_tasks(recipe, registry(recipe.imports)))
    return _hashes(recipe.data, tasks)


@functools.lru_cache(maxsize=64)
def _hashes(data: DataConfig, tasks: tuple[str, ...]) -> Mapping[str, str]:
    return load_suite(data, tasks).hashes


def _which(names: Sequence[str], total: int) -> str:
    if len(names) == total > 1:
        return f"every run of the {total}"
    return f"run{'s' * (len(names) > 1)} {', '.join(names)}"


def _asked_value(asked: Mapping[str, Any], key: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a varied key, or the one that the command line sets."""
    node: Any = asked
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return values
        node = node[part]
    return [node]


def _selected(runs: Mapping[str, dict[str, Any]], wanted: str) -> dict[str, dict[str, Any]]:
    names = {*parse_names(wanted)}
    found = {n: run for n, run in runs.items() if {*parse_names(strategy_of(run))} == names}
    if not found:
        there = dict.fromkeys(map(strategy_of, runs.values()))
        raise UserError(f"--strategy {wanted}: no run of the sweep; there are: {', '.join(there)}")
    return found


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
            if data is not None and data != _data_of(recipe):
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
