"""Run a function or a command on several ranks, each a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import forked

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def variables(ranks: int) -> list[dict[str, str]]:
    """Return what a launcher would set for each rank."""
    port = str(free_port())
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        for rank in range(ranks)
    ]


def start(
    function: Callable[..., Any], args: Sequence[Any], ranks: int, folder: Path, **more: str
) -> list[forked.Process]:
    """Start a function once for each rank, its output in `<folder>/<rank>.out` and `.err`."""
    return [
        forked.start(
            function,
            *args,
            told=folder / f"{rank}.out",
            errors=folder / f"{rank}.err",
            cwd=ROOT,
            env=own | more,
        )
        for rank, own in enumerate(variables(ranks))
    ]


def finish(processes: Sequence[Any], seconds: float) -> list[int]:
    """Wait for all, and return their exit codes; what is not done in time is killed and fails."""
    until = time.monotonic() + seconds
    try:
        return [p.wait(max(0.1, until - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()


def on_ranks(function: str, ranks: int, folder: Path, seconds: float = 300) -> list[Any]:
    """Return what `module:function` returns on each rank, given the folder; JSON can hold it."""
    codes = finish(start(_told, [function, folder], ranks, folder), seconds)
    told = [(folder / f"{rank}.err").read_text()[-4000:] for rank in range(ranks)]
    assert not any(codes), "\n".join(told)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def _told(function: str, folder: Path) -> None:
    place, _, name = function.partition(":")
    result = getattr(importlib.import_module(place), name)(folder)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
