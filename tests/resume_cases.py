"""What the tests of checkpoints do on every rank: write some, and read those of other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cl_mofo.checkpoint.store import Store
from cl_mofo.compat import repair_torchvision
from cl_mofo.config import EngineConfig
from cl_mofo.engine import make_engine
from cl_mofo.engine.ranks import Ranks, join
from cl_mofo.loop import Loop
from tests.engine_cases import ENGINES, OFFLOADED, build, small, stream

repair_torchvision()

from avalanche.core import SupervisedPlugin  # noqa: E402

TASKS = ("FOMC", "NumGLUE-cm")
STRATEGY = "ewc+gem+mofo"
SETTINGS = ("tasks.only=[FOMC, NumGLUE-cm]", "gem.refresh=2", "gem.memory_examples=4")
EVERY = ENGINES | OFFLOADED
WRITERS = {name: EVERY[name] for name in ("ZeRO-0", "ZeRO-2", "ZeRO-3 offload", "FSDP2")}
WRITERS |= {"torch": EngineConfig()}
READERS = {name: EVERY[name] for name in ("ZeRO-1 offload", "ZeRO-3", "FSDP2")}


def store_of(folder: Path, *names: str) -> Path:
    return folder / "-".join(names).replace(" ", "-")


def save(loop: Loop, folder: Path, content: Mapping[str, Any] | None = None) -> None:
    engine, state = loop.engine, loop.state_dict()
    store = Store(folder, engine.ranks, 1)
    store.save(loop.global_step, 0, state, engine.spans(), {}, content or {}, {})


class SaveIn(SupervisedPlugin, supports_distributed=True):
    """Save in the middle of the second task."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def after_training_iteration(self, strategy: Loop, **kwargs: Any) -> None:
        if strategy.task_index == 1 and strategy.step == 1:
            save(strategy, self.folder)


def loop_on(config: EngineConfig, ranks: Ranks) -> Loop:
    engine = make_engine(config, ranks if config.kind != "torch" else Ranks(), on_cpu=True)
    loop, _ = build(small(), engine, (f"strategy={STRATEGY}", *SETTINGS))
    return loop


def write(folder: Path) -> None:
    """Train on every engine, and save within the second task."""
    ranks = join(EngineConfig(kind="fsdp"), on_cpu=True)
    for name, config in WRITERS.items():
        if config.kind == "torch" and not ranks.first:
            continue
        loop = loop_on(config, ranks)
        loop.plugins.append(SaveIn(store_of(folder, name)))
        for experience in stream(TASKS, 8):
            loop.train(experience, eval_streams=[])
        loop.engine.close()


def read(folder: Path) -> list[list[Any]]:
    """Read every checkpoint on other engines, save it again, and train on from it."""
    ranks = join(EngineConfig(kind="fsdp"), on_cpu=True)
    results = []
    for reader, config in READERS.items():
        for name in WRITERS:
            loop = loop_on(config, ranks)
            (checkpoint,) = Store(store_of(folder, name), ranks, 1).read()
            parts, spans = loop.engine.parameters(), loop.engine.spans()
            wanted = {n: (spans[n], part.shape) for n, part in parts.items()}
            loop.load_state_dict(checkpoint.state(ranks.rank, wanted))
            save(loop, store_of(folder, name, reader))
            loop.train(stream(TASKS, 8)[1], eval_streams=[])
            with loop.engine.whole() as module:
                total = sum(w.double().square().sum() for w in loop.weights(module).values())
            results.append([reader, name, float(torch.as_tensor(total))])
            loop.engine.close()
    return results
