"""Run a function on several ranks, each a process of its own, and get what each returns.

`python -m tests.ranks MODULE:FUNCTION FOLDER` is such a process; a launcher's variables say which.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def start(command: Sequence[str], ranks: int, folder: Path, **more: str) -> list[Any]:
    """Start a command once for each rank, its output in `<folder>/<rank>.out` and `.err`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = str(free_port())
    processes = []
    for rank in range(ranks):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        with (folder / f"{rank}.out").open("w") as out, (folder / f"{rank}.err").open("w") as err:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env={**os.environ, **variables, **more},
                    stdout=out,
                    stderr=err,
                    preexec_fn=_hear_interrupts if _interrupts_are_ignored() else None,
                )
            )
    return processes


def _interrupts_are_ignored() -> bool:
    """A shell's background job ignores the signal, and so would its children."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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
    processes = start(["-m", "tests.ranks", function, str(folder)], ranks, folder)
    codes = finish(processes, seconds)
    told = [(folder / f"{rank}.err").read_text()[-4000:] for rank in range(ranks)]
    assert not any(codes), "\n".join(told)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    place, _, name = sys.argv[1].partition(":")
    folder = Path(sys.argv[2])
    result = getattr(importlib.import_module(place), name)(folder)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
