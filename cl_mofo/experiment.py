"""Run a recipe: check it, load what it names, learn the tasks one after another, score after each.

The way of the data: recipe -> plans and records -> experiences -> loop -> answers -> scores ->
result matrix -> run folder.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_mofo.config import EngineConfig, Recipe
from cl_mofo.data.plan import plan_tasks
from cl_mofo.data.suites import load_suite
from cl_mofo.discovery import registry
from cl_mofo.errors import (
    LostRankError,
    NotWrittenError,
    OutOfMemoryError,
    StoppedError,
    TrainingError,
    UserError,
)
from cl_mofo.files import DamagedError
from cl_mofo.folder import RECIPE, NoFolder, RunFolder
from cl_mofo.identity import identity
from cl_mofo.manifest import manifest, now
from cl_mofo.observer import Observer
from cl_mofo.place import Place
from cl_mofo.recipes import read_request, to_mapping
from cl_mofo.resolve import resolve, resolve_request, strategies_of
from cl_mofo.stopping import Stop

if TYPE_CHECKING:
    from cl_mofo.engine.ranks import Ranks
    from cl_mofo.model import LanguageModel


def run(
    config: Recipe | Mapping[str, Any] | str | Path,
    *,
    out: str | Path | None = None,
    observer: Observer | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Execute a recipe and return its results.

    While it trains and tests, SIGINT, SIGTERM and SIGUSR1 let it save and leave; a second one stops
    at once (docs/reliability.md).

    Args:
        config: a recipe: resolved, as a mapping, or the name or path of one. What a mapping leaves
            out is as on the command line: without a suite and a model, the embedded ones.
        out: the run folder to make; a fresh one under `outputs/` by default.
        observer: told what happens; `cl_mofo.console.Console` shows it.
        resume: go on with the run that `out` holds; one that is finished stays as it is.
        overwrite: delete the run that `out` holds, and begin anew.

    Returns:
        what `results.json` holds (docs/architecture.md), and "folder", where it lies.

    Raises:
        UserError: something in the recipe, the data or the model has to be mended by the user, or
            the recipe describes several runs (`cl_mofo.sweep.run_sweep`).
        TrainingError: training diverged.
        LostRankError: another process of the run ended or does not answer.
        StoppedError: a signal asked to stop; the run can go on.
        KeyboardInterrupt: the user did, by SIGINT; the run can go on.
    """
    recipe = as_recipe(config)
    place = Place(out, resume=resume, overwrite=overwrite)
    ranks = meet(recipe.engine, on_cpu=recipe.model.device == "cpu")
    from cl_mofo.engine.ranks import watching

    with watching():
        # The others wait here for the first, which has more to do, and return what it returns.
        results: dict[str, Any] = ranks.agree(_run(recipe, place, observer or Observer(), ranks))
    return results


def meet(config: EngineConfig, *, on_cpu: bool = False) -> Ranks:
    """Let the processes of the run meet, if there are several; those that have met stay together.

    Raises:
        UserError: they are not as the engine needs them.
        LostRankError: not all came.
    """
    if config.kind != "torch":
        # Loaded after the ranks have met, Avalanche would refuse to make loggers on most of them.
        importlib.import_module("cl_mofo.sequence")
    from cl_mofo.engine.ranks import join

    return join(config, on_cpu=on_cpu)


def resume(
    folder: str | Path,
    *,
    observer: Observer | None = None,
    assignments: Sequence[str] = (),
    imports: Sequence[Path] = (),
) -> dict[str, Any]:
    """Go on with the run that a folder holds, from its newest good checkpoint, to the same results.

    Args:
        folder: the run's.
        observer: told what happens.
        assignments: `key=value` texts, for keys that make no other run of it, such as `engine.kind`
            or `data.path`.
        imports: the Python files that the run was begun with, which are run again.

    Returns:
        as `run`.

    Raises:
        UserError: the folder holds no run, another process is running it, or what it is made of has
            changed: data, model, code, or the recipe.
        TrainingError, LostRankError, StoppedError, KeyboardInterrupt: as `run`.
    """
    kept = Path(folder) / RECIPE
    if not kept.is_file():
        raise UserError(f"{folder}: holds no run: there is no {RECIPE}")
    request = read_request(str(kept), assignments=assignments, imports=imports)
    if request.several:
        raise UserError(f"{kept}: is a recipe of several runs; the folder of one was expected")
    return run(resolve_request(request), out=folder, observer=observer, resume=True)


def _run(recipe: Recipe, place: Place, observer: Observer, ranks: Ranks) -> dict[str, Any]:
    if not ranks.first:
        observer = Observer()
    with ranks.together():
        known = registry(recipe.imports)
        plans = plan_tasks(recipe, known)
        done = place.check(recipe) if ranks.first else None
    done = ranks.agree(done)
    if done is not None:
        observer.warned(f"{place.out}: is finished; nothing was done")
        return dict(done)
    with ranks.together():
        suite = load_suite(recipe.data, [plan.task.name for plan in plans])
        strategies = strategies_of(recipe, known)
        seed_everything(recipe.seed, deterministic=recipe.deterministic)
        observer.loading(recipe)

        from cl_mofo.engine import check_engine, make_engine
        from cl_mofo.engine.ranks import wait_at_most, watching
        from cl_mofo.model import check_positions, load_model
        from cl_mofo.sequence import TaskSequence

        language_model = load_model(recipe.model, ranks.device)
        for plan in plans:
            needed = plan.prompt_tokens + plan.answer_tokens + 1
            check_positions(language_model, needed, f"task {plan.task.name}")
        for strategy in strategies:
            strategy.check_model(language_model)
        on_cpu = language_model.device.type == "cpu"
        engine = make_engine(recipe.engine, ranks, on_cpu=on_cpu)
        check_engine(engine, recipe, strategies)
    model = _identity(recipe, language_model)
    made_of = identity(recipe, suite.hashes, model)
    folder = _folder(place, recipe, ranks)
    stop = Stop()
    try:
        left = place.left(folder, made_of, observer, ranks)
        record = left.manifest or manifest(suite.hashes, model, ranks.count)
        # From here on the folder holds a run: a signal is heard where it can be gone on with.
        with watching(), stop.listening():
            folder.write_yaml(RECIPE, to_mapping(recipe))
            folder.write_json("manifest.json", record)
            sequence = TaskSequence(
                recipe,
                plans,
                suite,
                strategies,
                language_model,
                folder,
                observer,
                engine,
                made_of,
                stop,
            )
            wait_at_most(recipe.engine)
            results = sequence.learn(left.checkpoint, left.progress)
            folder.write_json("manifest.json", record | {"finished": now()})
            if ranks.first:
                sequence.store.clear()
    except DamagedError as error:
        folder.log.error("stopped: %s", error)
        raise UserError(
            f"{folder.path}: {error}. Delete it from {folder.path}/checkpoints to go on from the "
            f"one before"
        ) from error
    except BaseException as error:
        told = UserError | TrainingError | LostRankError | StoppedError | KeyboardInterrupt
        fault = not isinstance(error, told)
        folder.log.error("stopped: %s: %s", type(error).__name__, error, exc_info=fault)
        if isinstance(error, TrainingError):
            if not isinstance(error, OutOfMemoryError | NotWrittenError):
                folder.write_json("manifest.json", record | {"diverged": str(error)})
            engine.close()
        stopped = isinstance(error, StoppedError | KeyboardInterrupt)
        if stopped and (folder.path / RECIPE).is_file():
            how = str(error) or "interrupted"
            imports = [word for path in recipe.imports for word in ("--import", str(path))]
            again = shlex.join(["cl-mofo", "resume", str(folder.path), *imports])
            raise type(error)(f"{how}. To go on: {again}") from None
        raise
    finally:
        folder.close()
        engine.abandon()
    engine.close()
    return results


def _folder(place: Place, recipe: Recipe, ranks: Ranks) -> RunFolder:
    """Return the run's folder, in which the first rank alone writes."""
    folder: RunFolder | None = None
    with ranks.together():
        if ranks.first:
            folder = place.take(recipe.strategy)
    path = ranks.agree(None if folder is None else str(folder.path))
    return folder or NoFolder(Path(path))


def as_recipe(config: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """Return a checked recipe from any of the forms `run` takes."""
    if isinstance(config, Recipe):
        return config if config.strategies else resolve(to_mapping(config))
    request = read_request(config if isinstance(config, Mapping) else str(config))
    return resolve(request.complete())


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python, numpy and torch; on CUDA, allow only kernels that give the same bits."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


def _identity(recipe: Recipe, language_model: LanguageModel) -> dict[str, Any]:
    digest = hashlib.sha256()
    count = 0
    for name, parameter in language_model.module.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().data)
        count += parameter.numel()
    return {
        "path": recipe.model.path,
        "revision": recipe.model.revision,
        "parameters": count,
        "sha256": digest.hexdigest(),
        "device": str(language_model.device),
        "compute_dtype": str(language_model.compute_dtype).removeprefix("torch."),
    }
