"""Makes a library of `native.c`: compiled at first use, then found in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

import torch

from cl_mofo.cachedir import cache_folder

COMPILERS = ("gcc", "cc", "clang")
# No contraction: what is rounded once instead of twice is written so, as torch's kernels have it.
FLAGS = ("-O3", "-march=native", "-std=c11", "-ffp-contract=off", "-fPIC", "-shared")
# Compilers think that a processor slows down with its widest registers; this code waits for memory.
_WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
_SECONDS = 60  # which a compiler that hangs gets
_DIGEST = hashlib.sha256().digest_size


class NativeError(Exception):
    """There is no library; the text says why."""


def load(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the functions of native.c for parameters of this dtype.

    Raises:
        NativeError: there is no compiler, or it cannot compile it.
        OSError: the library cannot be written or loaded.
        subprocess.SubprocessError: the compiler fails or hangs.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeError(f"no C compiler is found ({', '.join(COMPILERS)})")
    source = files("cl_mofo.optim").joinpath("native.c").read_bytes()
    command = [compiler, *FLAGS, *_WIDE, f"-DPARAM_{str(dtype).removeprefix('torch.')}"]
    folder = cache_folder("native")
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="cl-mofo-") as private:
            return ctypes.CDLL(str(_compile(command, source, Path(private))))
    path = folder / f"{_identity(command, source)}.so"
    if not _is_whole(path):
        with tempfile.TemporaryDirectory(dir=folder) as private:
            made = _compile(command, source, Path(private))
            with made.open("r+b") as file:
                digest = hashlib.sha256(file.read()).digest()
                file.write(digest)  # which loaders do not see
            os.replace(made, path)
    return ctypes.CDLL(str(path))


def torchs_library(pattern: str) -> Path | None:
    """Return a library that torch brings along."""
    return next(Path(torch.__file__).with_name("lib").glob(pattern), None)


def _threads() -> tuple[str, ...]:
    """Return what makes the library run on torch's own threads; a second pool would fight them."""
    pool = torchs_library("libgomp*.so*")
    if pool is None:
        return ()
    return ("-fopenmp", "-nodefaultlibs", "-Wl,-z,defs", str(pool), "-lm", "-lc")


def _identity(command: list[str], source: bytes) -> str:
    """Return a name for what comes of it on this machine."""
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, timeout=_SECONDS, check=True
    ).stdout
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    except OSError:
        processor = [platform.processor()]
    parts = (*command, *_threads(), platform.machine(), *processor)
    return hashlib.sha256(b"\0".join([source, version, *map(str.encode, parts)])).hexdigest()


def _is_whole(path: Path) -> bool:
    """Tell whether the file ends with the digest of what precedes it."""
    try:
        held = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(held[:-_DIGEST]).digest() == held[-_DIGEST:]


def _compile(command: list[str], source: bytes, folder: Path) -> Path:
    """Compile with threads, or without where that cannot be, and return the library."""
    text, made = folder / "native.c", folder / "native.so"
    text.write_bytes(source)
    for threads in (_threads(), ("-lm",)):
        done = subprocess.run(
            [*command, str(text), "-o", str(made), *threads],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode == 0:
            return made
    last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    raise NativeError(f"{command[0]} cannot compile it: {last[0]}")
