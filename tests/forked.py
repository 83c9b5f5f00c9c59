"""Runs in processes of their own, forked from one that has everything loaded: they start at once.

A process that has computed gradients can fork none that does, so the tests' own is not that one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

import cl_mofo
from cl_mofo.errors import StoppedError, TrainingError, UserError
from cl_mofo.folder import RECIPE

CODES: Mapping[type[BaseException], int] = {
    KeyboardInterrupt: 130,
    StoppedError: 75,
    UserError: 2,
    TrainingError: 1,
}
"""The command line's exit codes; a fault has one of its own here."""
FAULT = 70

_context = multiprocessing.get_context("forkserver")
_lock = threading.Lock()
_context.set_forkserver_preload(["tests.loaded", "tests.forked"])


class Process(ForkServerProcess):
    """A process with the methods of one that `subprocess` has started."""

    def wait(self, seconds: float | None = None) -> int:
        """Return the exit code."""
        self.join(seconds)
        if self.exitcode is None:
            raise TimeoutError(f"a process was not done after {seconds} s")
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.is_alive():
            assert self.pid is not None
            os.kill(self.pid, number)


def start(
    function: Callable[..., Any],
    *args: Any,
    told: Path,
    errors: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
) -> Process:
    """Start a function in a process of its own.

    What it prints, and what it raises, is added to the file `told`, or what is an error to
    `errors`; its exit code is the command line's. `env` is put into this process' environment, None
    takes a variable out.
    """
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    told.parent.mkdir(parents=True, exist_ok=True)
    with _lock, mock.patch.dict(os.environ, own):  # of the process that forks too, if it begins now
        whole = {k: v for k, v in {**os.environ, **(env or {})}.items() if v is not None}
        process = Process(
            target=_child, args=(function, args, told, errors or told, cwd or Path.cwd(), whole)
        )
        process.start()
    return process


def finish(process: Process, seconds: float = 300) -> int:
    """Return a process' exit code, or end it if it takes too long."""
    try:
        return process.wait(seconds)
    finally:
        process.kill()
        process.join()


def call(function: Callable[..., Any], *args: Any, told: Path) -> int:
    """Run a function in a process of its own; return its exit code."""
    return finish(start(function, *args, told=told))


@dataclass
class Done:
    """What a command has left."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: Any, cwd: Path, **env: str | None) -> Done:
    """Run `cl-mofo` with these arguments, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        told, errors = Path(folder, "out"), Path(folder, "err")
        words = map(str, arguments)
        process = start(command_line, *words, told=told, errors=errors, cwd=cwd, env=env)
        code = finish(process)
        return Done(code, told.read_bytes().decode(), errors.read_bytes().decode())


def _child(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    told: Path,
    errors: Path,
    cwd: Path,
    env: Mapping[str, str],
) -> None:
    for number, path in ((1, told), (2, errors)):
        with path.open("a") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind
    code = 0
    try:
        function(*args)
    except SystemExit as error:
        code = int(error.code or 0)
        if "RANK" in env:
            # As an interpreter ends: libraries, which may wait for other ranks, are called.
            ctypes.pythonapi.Py_Exit(code)
    except BaseException as error:
        code = next((c for kind, c in CODES.items() if isinstance(error, kind)), FAULT)
        if code == FAULT:
            traceback.print_exc()
        print(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def command_line(*arguments: str) -> None:
    """Be `cl-mofo` with these arguments."""
    from cl_mofo.cli import main

    sys.argv = ["cl-mofo", *arguments]
    main()


def script(code: str) -> None:
    """Be `python -c` with this code."""
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    raise SystemExit


def run(recipe: Mapping[str, Any], folder: Path) -> None:
    """Run a recipe."""
    cl_mofo.run(recipe, out=folder)


def go_on(recipe: Mapping[str, Any], folder: Path) -> None:
    """Go on with a run as a user would: it is made anew if it had not begun."""
    if (folder / RECIPE).is_file():
        cl_mofo.resume(folder)
    else:
        cl_mofo.run(recipe, out=folder)
