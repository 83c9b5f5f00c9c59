"""The processes of a run: how many there are, which one this is, and what they tell each other.

A launcher (`torchrun`, `deepspeed`, Slurm) starts the same command several times and tells each
process its number in RANK, LOCAL_RANK and WORLD_SIZE; without a launcher there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from cl_mofo.config import EngineConfig
from cl_mofo.engine.meeting import meet
from cl_mofo.errors import LostRankError, OutOfMemoryError, TrainingError, UserError


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, of which this is one.

    Args:
        rank: which, from 0.
        count: how many there are.
        device: which of its machine's accelerators this one has; None for the current one.
    """

    rank: int = 0
    count: int = 1
    device: int | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of all ranks' tensors, the same on all."""
        if self.count == 1:
            return tensor
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, value: Any) -> list[Any]:
        """Return what each rank gives, in their order; values that JSON can hold."""
        if self.count == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(own)]))
        longest = int(torch.stack(sizes).max())
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
        dist.all_gather(texts, padded)
        return [
            json.loads(text[: int(size)].numpy().tobytes())
            for text, size in zip(texts, sizes, strict=True)
        ]

    def largest(self, values: list[int]) -> list[int]:
        """Return for each place the largest number that a rank gives."""
        if self.count == 1:
            return values
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def agree(self, value: Any) -> Any:
        """Return what the first rank gives, which JSON can hold."""
        return self.gather(value if self.first else None)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all ranks fail where one does, with its message.

        Raises:
            UserError: as on the rank that raised it.
            TrainingError: as on the rank that raised it.
        """
        error: Exception | None = None
        try:
            yield
        except (UserError, TrainingError) as raised:
            error = raised
        told = self.gather(error and [type(error).__name__, str(error)])
        failed = {rank: message for rank, message in enumerate(told) if message is not None}
        if error is not None and len(failed) == self.count:
            raise error
        kinds = {kind.__name__: kind for kind in (UserError, TrainingError, OutOfMemoryError)}
        for rank, (kind, message) in failed.items():
            raise kinds.get(kind, UserError)(f"rank {rank}: {message}")


def launched() -> Ranks:
    """Return what a launcher says of this process.

    Raises:
        UserError: the variables are no such numbers, or some are missing.
    """
    given = {key: os.environ.get(key) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    told = ", ".join(f"{key}={value}" for key, value in given.items() if value is not None)
    fix = "A launcher such as torchrun sets them; without one, unset them all"
    try:
        rank, count, local = (int(given[key] or d) for key, d in zip(given, (0, 1, 0), strict=True))
    except ValueError:
        raise UserError(f"{told} in the environment: whole numbers were expected. {fix}") from None
    if (given["RANK"] is None and count > 1) or (given["RANK"] and not given["WORLD_SIZE"]):
        missing = "RANK" if given["RANK"] is None else "WORLD_SIZE"
        raise UserError(f"{told} in the environment, but no {missing}. {fix}")
    if not 0 <= rank < count or local < 0:
        raise UserError(f"{told} in the environment do not go together. {fix}")
    return Ranks(rank, count)


def local_rank() -> int:
    """Return which of its machine's processes this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0)))


def join(config: EngineConfig, *, on_cpu: bool = False) -> Ranks:
    """Meet the other processes of the run; one alone, on one device, has nobody to meet.

    Raises:
        UserError: there are several and the engine is for one, there are more than accelerators,
            or they do not know where to meet.
        LostRankError: the others do not come.
    """
    ranks = launched()
    if config.kind == "torch":
        if ranks.count > 1:
            raise UserError(
                f"recipe key engine.kind: 'torch' computes on one device, and {ranks.count} "
                f"processes were started. Give engine.kind=fsdp or deepspeed, or start one"
            )
        return ranks
    if not dist.is_initialized():
        meet(ranks.rank, ranks.count, timedelta(minutes=config.timeout_minutes))
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    with ranks.together():
        device = None if on_cpu else _accelerator()
    return replace(ranks, device=device)


def _accelerator() -> int | None:
    """Take this process's accelerator of its machine's."""
    if not torch.cuda.is_available():
        return None
    index = local_rank()
    if torch.cuda.device_count() == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        index = 0  # a scheduler has given each process its own
    if index >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank()} of its machine, counted from 0, has no GPU: there are "
            f"{torch.cuda.device_count()}. Start one process for each GPU"
        )
    torch.cuda.set_device(index)
    return index


def wait_at_most(config: EngineConfig) -> None:
    """Let no process wait longer for another, in whichever group an engine has made."""
    if dist.is_initialized():
        for group in tuple(c10d._world.pg_map):
            c10d._set_pg_timeout(timedelta(minutes=config.timeout_minutes), group)


@contextmanager
def watching() -> Iterator[None]:
    """Tell the end of another process from a fault of this one.

    Raises:
        LostRankError: another process ended or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and dist.get_world_size() > 1 and _is_lost(error):
            raise LostRankError(
                "another process of the run ended or stopped answering; if it left no message of "
                "its own, it was killed (by the system, if memory ran out). The run can go on from "
                "its last checkpoint"
            ) from error
        raise


LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "timeout caused pair closure",
)
"""How gloo says that another process is gone, or does not answer in time."""


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST)
