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
