"""Where the processes of a run meet, and what is said if they cannot."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from cl_mofo.errors import LostRankError, UserError

SPARE = 5.0
"""Seconds by which torch may be late when it waits no longer."""


def meet(rank: int, count: int, timeout: timedelta) -> None:
    """Make the process group of a run, over gloo for host tensors and NCCL for a GPU's.

    Args:
        rank: this process's number, from 0.
        count: how many there are.
        timeout: how long to wait for the others, now and in every collective call.

    Raises:
        UserError: the environment does not say where to meet, or the port is taken.
        LostRankError: the others do not come.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if count == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    cannot = f"the {count} processes of the run cannot meet"
    if not address or not port or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"{cannot}: MASTER_ADDR={address or ''} and MASTER_PORT={port or ''} in the "
            f"environment should say where. Start the processes with torchrun or deepspeed, which "
            f"set them"
        )
    try:
        store = _store(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        if "in use" in str(error) or "EADDRINUSE" in str(error):
            raise UserError(
                f"{cannot}: port {port} is in use by another program or run; give another "
                f"(torchrun --master-port 29511, deepspeed --master_port 29511)"
            ) from error
        reason = next(iter(str(error).splitlines()), repr(error))
        raise LostRankError(
            f"{cannot}: is {address}:{port} reachable from every machine, free of other programs, "
            f"and did all {count} processes start? ({reason}; waited "
            f"engine.timeout_minutes={timeout.total_seconds() / 60:g})"
        ) from error


def _store(timeout: timedelta) -> Any:
    """Return the store at which the processes meet.

    Raises:
        RuntimeError: it cannot be made or reached in time.
    """
    made: list[Any] = []

    def make() -> None:
        try:
            made.append(next(rendezvous("env://", timeout=timeout))[0])
        except (RuntimeError, ValueError) as error:
            made.append(error)

    # In a thread, as torch waits for ever for the answer of a program that is no store.
    making = threading.Thread(target=make, daemon=True)
    making.start()
    making.join(timeout.total_seconds() + SPARE)
    (store,) = made or [RuntimeError("whoever listens there does not answer")]
    if isinstance(store, Exception):
        raise store
    return dist.PrefixStore("default_pg", store)  # type: ignore[attr-defined]
