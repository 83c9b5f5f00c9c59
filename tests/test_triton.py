"""The GPU's way to take a step: `triton_cases.py`, and when it is taken at all."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cl_mofo.optim.native import Native
from cl_mofo.optim.paths import paths
from cl_mofo.optim.pure import Pure


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_compiled_on_a_gpu_or_interpreted():
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", Path(__file__).with_name("triton_cases.py")],
        env=os.environ | interpreted,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


COMPILING = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cl_mofo.optim import triton_kernels as kernels

TYPES = {"options": "*fp64", "coefficients": "*fp32", "histogram": "*i32", "tensor_of": "*i32"}
TYPES |= {"table": "*i64", "state": "*i64", "candidates": "*i64", "cut": "*i32"}
TYPES |= {"discard": "*i1", "tensors": "i32"}
DTYPES = {"PARAM_TYPE": tl.bfloat16, "GRAD_TYPE": tl.float32}
FIXED = {"BLOCK": 4096, "ALIGNED": True, "FIRST": False, **DTYPES}
for name in ("count_step", "update_moments", "narrow", "move_above", "count_candidates",
             "move_candidates"):
    kernel = getattr(kernels, name)
    signature = {argument: TYPES.get(argument, "constexpr") for argument in kernel.arg_names}
    constants = {(i,): FIXED[a] for i, a in enumerate(kernel.arg_names) if a in FIXED}
    pointers = [i for i, a in enumerate(kernel.arg_names) if TYPES.get(a, "").startswith("*")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 16})
    print(name, len(made.asm["cubin"]), "ld.global.v4.b32" in made.asm["ptx"])
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_compile_for_a_gpu_where_there_is_none(tmp_path):
    # What the interpreter lets through, the compiler may not.
    done = subprocess.run(
        [sys.executable, "-c", COMPILING],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert all(int(size) > 1000 for _, size, _ in rows)
    # The dense passes read 16 bytes at a time.
    assert {name for name, _, wide in rows if wide == "True"} >= {"update_moments", "move_above"}


def test_without_triton_a_gpu_is_the_pure_paths_and_a_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "cl_mofo.optim.triton_step", raising=False)
    with caplog.at_level(logging.WARNING):
        assert [type(path) for path in paths()] == [Native, Pure]
    assert "without Triton" in caplog.text


def test_without_a_gpu_triton_is_not_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert [type(path) for path in paths()] == [Native, Pure]
    assert not caplog.records
