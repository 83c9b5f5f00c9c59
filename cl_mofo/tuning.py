"""Choose hyperparameters on validation data: the MoFO paper's guideline (appendix D), for any key.

    draw a small share of each task's training rows at random (a proxy)
    learn all tasks on it with each value of a grid, scoring the validation split
    take the value with the best OP, which counts both what was learned and what was kept

A tuning is a sweep (several.py): its runs have their folders, the same command goes on with what is
not finished, and several processes share it. The test split is never scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cl_mofo.claim import claim
from cl_mofo.contest import MEASURES, Contest, contests, examples
from cl_mofo.errors import TrainingError, UserError, nearest
from cl_mofo.files import write_whole
from cl_mofo.grid import Grid, Plan, chosen_recipe, plan_tuning, trial_only
from cl_mofo.observer import Observer
from cl_mofo.recipes import Request, read_request
from cl_mofo.several import Swept, run_all
from cl_mofo.sweep import as_request, on_first_rank, plan_sweep
from cl_mofo.untrusted import shortened

BEST = "best.yaml"


@dataclass(frozen=True)
class Tuned:
    """What came out of a tuning.

    Args:
        contests: one for each strategy.
        by: what the choice went by.
        grid: what was tried.
        seeds: the runs of each candidate.
        examples: validation examples, of all tasks.
        alone: what was set for the tuning alone, and is not in `best`: dotted keys, values.
        folder: of the runs.
        best: the recipe with what was chosen; None if not all strategies have a choice.
        imports: Python files of one's own, which a command that runs `best` names again.
    """

    contests: Sequence[Contest]
    by: str
    grid: Grid
    seeds: Sequence[int]
    examples: int
    alone: Mapping[str, Any]
    folder: Path
    best: Path | None
    imports: Sequence[Path] = ()


def tune(
    recipe: Request | Mapping[str, Any] | str | Path | None = None,
    *,
    grid: Grid,
    by: str = "op",
    share: float | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> Tuned:
    """Try a grid of values on validation data, and write the recipe with the best of them.

    Ties go to the smaller distance to the initial weights, then to what comes first in the grid. A
    run that diverged loses.

    Args:
        recipe: a mapping, the name or path of a recipe, or `read_request`'s recipe with options;
            of a recipe of several runs, each strategy is tuned.
        grid: dotted recipe keys with the values to try; all combinations are.
        by: "op", "learned" or "loss".
        share: which share of each task's training rows is learned, more than 0, 1 at most; as the
            recipe has it by default.
        out: the folder of the runs' folders and of `best.yaml`; by default
            `outputs/tune-<the recipe's name>`, or `outputs/tune`.
        observer: told what happens.

    Raises:
        UserError: something has to be mended in the recipe, the grid, the data or the folders; all
            that can be known is told before the first run.
        TrainingError: runs ended in an error other than that they diverged, or all of a strategy
            diverged; all others are done.
        LostRankError: another process of the tuning ended or does not answer.
    """
    if by not in MEASURES:
        raise UserError(
            f"--by {shortened(by)}: choose {', '.join(MEASURES)}{nearest(by, MEASURES)}"
        )
    from cl_mofo.engine.ranks import launched

    request = read_request() if recipe is None else as_request(recipe)
    plan = plan_tuning(request, grid, share)
    runs = plan_sweep(plan.request)
    if by == "loss" and not all(run.evaluation.losses for run in runs.values()):
        raise UserError("--by loss: evaluation.losses is false, so that no loss is measured")
    root = Path("outputs", f"tune-{request.name}" if request.name else "tune")
    root = root if out is None else Path(out)
    heard = on_first_rank(observer)
    swept = run_all(runs, root, heard)
    found = contests(plan, swept, by)
    best = root / BEST if all(contest.best is not None for contest in found) else None
    tuned = Tuned(
        *(found, by, plan.grid, plan.seeds, examples(swept), trial_only(plan), root, best),
        imports=request.imports,
    )
    if best is not None and launched().first:
        _write(tuned, plan, best)
    heard.tuned(tuned)
    _refuse_failed(swept, tuned)
    return tuned


def _refuse_failed(swept: Swept, tuned: Tuned) -> None:
    told = [
        f"run {name}: {why}" for name, why in swept.failed.items() if name not in swept.diverged
    ]
    if told:
        again = "The same command tries again what is not done"
        raise TrainingError("\n".join([f"{len(told)} runs failed:", *told, again]))
    lost = [contest.name for contest in tuned.contests if contest.done and contest.best is None]
    if lost:
        raise TrainingError(
            f"every run of {', '.join(lost)} diverged, so no {BEST} is written. Extend the grid"
        )


def _write(tuned: Tuned, plan: Plan, path: Path) -> None:
    chosen = [
        contest.candidates[contest.best].values
        for contest in tuned.contests
        if contest.best is not None
    ]
    tried = "; ".join(f"{key}: {shortened(list(values))}" for key, values in tuned.grid.items())
    text = (
        f"# Chosen by cl-mofo tune: the best {tuned.by} on {tuned.examples} validation examples.\n"
        f"# Tried: {tried}\n"
    ) + yaml.safe_dump(chosen_recipe(plan, chosen), sort_keys=False, allow_unicode=True)
    with claim(path) as free:
        if free:  # else another process is writing the same
            try:
                write_whole(path, [text.encode()])
            except OSError as error:
                raise UserError(f"{path}: cannot be written: {error.strerror}") from error
