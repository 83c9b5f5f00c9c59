"""Where a model computes: on one device, or spread over several by DeepSpeed or FSDP2.

- `base.py`: what the loop asks of an engine
- `single.py`, `fsdp.py`, `zero.py`: the engines
- `internals.py`: DeepSpeed's private attributes, and nothing else touches them
- `ranks.py`: the processes of a run
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from cl_mofo.config import EngineConfig, Recipe
from cl_mofo.engine.base import Engine
from cl_mofo.engine.ranks import Ranks
from cl_mofo.engine.single import SingleEngine
from cl_mofo.errors import UserError

if TYPE_CHECKING:
    from cl_mofo.strategy import Strategy

__all__ = ["Engine", "Ranks", "SingleEngine", "check_engine", "make_engine"]


def make_engine(config: EngineConfig, ranks: Ranks, *, on_cpu: bool = True) -> Engine:
    """Return the engine that a recipe names.

    Args:
        config: which.
        ranks: the processes of the run.
        on_cpu: whether the model computes on a CPU.

    Raises:
        UserError: DeepSpeed is wanted, and not there or does not start.
    """
    if config.kind == "deepspeed":
        from cl_mofo.engine.zero import DeepSpeedEngine

        return DeepSpeedEngine(config, ranks, on_cpu=on_cpu)
    if config.kind == "fsdp":
        from cl_mofo.engine.fsdp import FSDPEngine

        return FSDPEngine(config, ranks)
    if config.kind == "torch":
        return SingleEngine(ranks, compiled=config.compile)
    assert_never(config.kind)


def check_engine(engine: Engine, recipe: Recipe, strategies: Sequence[Strategy]) -> None:
    """Refuse what an engine cannot do, before training starts.

    Raises:
        UserError: a strategy, or the batch, does not fit the engine or its ranks.
    """
    for strategy in strategies:
        if "update" in strategy.phases and engine.holds_no_tensor_back is not None:
            raise UserError(
                f"strategy {strategy.name} keeps some tensors out of a step, which "
                f"{engine.holds_no_tensor_back}"
            )
    ranks, batch = engine.ranks.count, recipe.optimizer.batch_size
    if ranks > batch:
        raise UserError(
            f"{ranks} processes share optimizer.batch_size={batch}: some would have no example. "
            f"Start at most {batch} processes, or give a larger batch"
        )
    parts = math.ceil(batch / recipe.training.micro_batch_size)
    if recipe.training.loss == "micro_batches" and ranks > parts:
        raise UserError(
            f"{ranks} processes share {parts} micro-batches (optimizer.batch_size={batch} by "
            f"training.micro_batch_size={recipe.training.micro_batch_size}), and with "
            f"training.loss=micro_batches their size decides the loss. Start at most {parts} "
            f"processes, or give a smaller micro-batch size"
        )
