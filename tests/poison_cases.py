"""What ranks do in `test_skipped_steps.py`: one of them has the broken micro-batch."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from cl_mofo.checkpoint import load_state
from cl_mofo.data.plan import plan_tasks
from cl_mofo.discovery import registry
from cl_mofo.engine import make_engine
from cl_mofo.engine.ranks import Ranks, join
from cl_mofo.loop import Loop
from cl_mofo.observer import Observer
from cl_mofo.recipes import override
from cl_mofo.resolve import resolve, strategies_of
from cl_mofo.steplog import StepLog
from tests.engine_cases import BASE, ENGINES, settings_of, small, stream, whole_weights
from tests.poison import Poison, Witness


def skip(folder: Any) -> list[Any]:
    """Break two steps on the second rank alone, and go on from a state saved between them."""
    ranks = join(ENGINES["FSDP2"])
    results = []
    for name, strategy in itertools.product(("FSDP2", "ZeRO-2"), ("mofo", "ewc+mofo")):
        kept = folder / f"{name}-{strategy}-{ranks.rank}"
        watch = Witness(save_after=2, folder=kept)
        loop, log = build(name, strategy, ranks, watch)
        start = whole_weights(loop.engine)
        loop.train(stream(["FOMC"], 20)[0], eval_streams=[])
        end = whole_weights(loop.engine)
        loop.engine.close()
        again, _ = build(name, strategy, ranks)
        again.load_state_dict(load_state(kept))
        counted = again.skipped
        again.train(stream(["FOMC"], 20)[0], eval_streams=[])
        ours = whole_weights(again.engine)
        results.append(
            {
                "engine": name,
                "skipped": [row["skipped"] for row in log.rows],
                "same": [int(same) for same in watch.same],
                "moved": any(not torch.equal(end[n], start[n]) for n in end),
                "finite": all(bool(weight.isfinite().all()) for weight in end.values()),
                "resumed": counted == 1 and all(torch.equal(end[n], ours[n]) for n in end),
            }
        )
        again.engine.close()
    return results


def build(name: str, strategy: str, ranks: Ranks, watch: Any = None) -> tuple[Loop, StepLog]:
    recipe = resolve(override(BASE, [*settings_of(strategy), "tasks.only=[FOMC]"]))
    torch.manual_seed(recipe.seed)
    log = StepLog(Observer())
    broken = {} if ranks.first else {1: float("nan"), 4: float("inf")}
    loop = Loop(
        language_model=small(num_hidden_layers=1),
        plans=plan_tasks(recipe, registry()),
        recipe=recipe,
        strategies=(*strategies_of(recipe, registry()), Poison(broken)),
        engine=make_engine(ENGINES[name], ranks),
        plugins=[log, *([watch] if watch else [])],
    )
    return loop, log
