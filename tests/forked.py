"""Runs in processes of their own, forked from one that has everything loaded: they start at once.

A process that has computed gradients can fork none that does, so the tests' own is not that one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import cl_mofo
from cl_mofo.errors import StoppedError, TrainingError, UserError
from cl_mofo.folder import RECIPE

ROOT = Path(__file__).resolve().parent.parent
LOADED = [
    "tests.forked",
    "cl_mofo.experiment",
    "cl_mofo.sequence",
    "matplotlib.pyplot",
    "deepspeed",  # by transformers, where it writes a model
    "peft",
    "pyarrow.parquet",
    "sacrebleu",
    "transformers.models.llama.modeling_llama",
]
CODES: Mapping[type[BaseException], int] = {
    KeyboardInterrupt: 130,
    StoppedError: 75,
    UserError: 2,
    TrainingError: 1,
}
"""The command line's exit codes; a fault has one of its own here."""
FAULT = 70

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LOADED)


def start(function: Callable[..., Any], *args: Any, told: Path) -> Any:
    """Start a function in a process of its own; what it prints and raises goes to a file.

    Its exit code is the command line's.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    told.parent.mkdir(parents=True, exist_ok=True)
    process = _context.Process(target=_child, args=(function, args, told))
    process.start()
    return process


def finish(process: Any, seconds: float = 300) -> int:
    """Return a process' exit code, or end it if it takes too long."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"a process was not done after {seconds} s")
    code: int = process.exitcode
    return code


def call(function: Callable[..., Any], *args: Any, told: Path) -> int:
    """Run a function in a process of its own; return its exit code."""
    return finish(start(function, *args, told=told))


def _child(function: Callable[..., Any], args: tuple[Any, ...], told: Path) -> None:
    with told.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind
    code = 0
    try:
        function(*args)
    except BaseException as error:
        code = next((c for kind, c in CODES.items() if isinstance(error, kind)), FAULT)
        if code == FAULT:
            traceback.print_exc()
        print(error)
    sys.stdout.flush()
    os._exit(code)


def run(recipe: Mapping[str, Any], folder: Path) -> None:
    """Run a recipe."""
    cl_mofo.run(recipe, out=folder)


def go_on(recipe: Mapping[str, Any], folder: Path) -> None:
    """Go on with a run as a user would: it is made anew if it had not begun."""
    if (folder / RECIPE).is_file():
        cl_mofo.resume(folder)
    else:
        cl_mofo.run(recipe, out=folder)
