"""The processes of a run: how many there are, which one this is, and what they tell each other.

A launcher (`torchrun`, `deepspeed`, Slurm) starts the same command several times and tells each
process its number in RANK, LOCAL_RANK and WORLD_SIZE; without a launcher there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from cl_mofo.config import EngineConfig
from cl_mofo.errors import LostRankError, TrainingError, UserError


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
        for rank, (kind, message) in failed.items():
            where = f"rank {rank}: {message}"
            raise TrainingError(where) if kind == TrainingError.__name__ else UserError(where)


def launched() -> Ranks:
    """Return what a launcher says of this process.

    Raises:
        UserError: the variables are no such numbers.
    """
    try:
        rank, count = (int(os.environ.get(key, d)) for key, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    except ValueError as error:
        raise UserError(
            f"RANK and WORLD_SIZE in the environment are no whole numbers: {error}"
        ) from error
    if not 0 <= rank < count:
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={count} in the environment do not go together. A launcher "
            f"such as torchrun sets them; without one, unset both"
        )
    return Ranks(rank, count)


def local_rank() -> int:
    """Return which of its machine's processes this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0)))


def join(config: EngineConfig) -> Ranks:
    """Meet the other processes of the run; one alone, on one device, has nobody to meet.

    Raises:
        UserError: there are several and the engine is for one, or they cannot be reached.
    """
    ranks = launched()
    if config.kind == "torch":
        if ranks.count > 1:
            raise UserError(
                f"recipe key engine.kind: 'torch' computes on one device, and {ranks.count} "
                f"processes were started. Give engine.kind=fsdp or deepspeed, or start one"
            )
        return ranks
    device = _accelerator()
    if not dist.is_initialized():
        _meet(ranks, timedelta(minutes=config.timeout_minutes))
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _accelerator() -> int | None:
    """Take this process's accelerator of its machine's."""
    if not torch.cuda.is_available():
        return None
    if local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank()} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}. Start one process for each GPU"
        )
    torch.cuda.set_device(local_rank())
    return local_rank()


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _meet(ranks: Ranks, timeout: timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        if ranks.count == 1:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        port = os.environ.get("MASTER_PORT", "?")
        if "in use" in str(error) or "EADDRINUSE" in str(error):
            advice = (
                f"port {port} is in use by another program or run; give another (torchrun "
                f"--master-port 29511, deepspeed --master_port 29511)"
            )
        elif "environment variable" in str(error):
            advice = "start the processes with torchrun or deepspeed, which say where to meet"
        else:
            advice = (
                f"is {os.environ.get('MASTER_ADDR', '?')}:{port} reachable from every machine, and "
                f"did all {ranks.count} processes start?"
            )
        reason = next(iter(str(error).splitlines()), repr(error))
        raise UserError(
            f"the {ranks.count} processes of the run cannot meet: {advice} ({reason})"
        ) from error


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
                "its own, it was killed (by the system, if memory ran out). What was measured so "
                "far is in the run folder"
            ) from error
        raise


def _is_lost(error: RuntimeError) -> bool:
    told = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in told
        for sign in ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
    )
