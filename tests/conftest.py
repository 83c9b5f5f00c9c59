"""What the tests share: real TRACE data if it is there, the embedded model, one thread."""

from __future__ import annotations

import copy
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from cl_mofo.compat import repair_torchvision
from cl_mofo.config import ModelConfig
from cl_mofo.model import LanguageModel, load_model

torch.set_num_threads(1)
repair_torchvision()  # before any test file imports avalanche

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def trace_500() -> Path:
    """The real TRACE, in its 500-example variant, which lies beside the repository or nowhere."""
    path = SHARED / "trace-500"
    if not path.is_dir():
        pytest.skip(f"real TRACE data are not at {path}")
    return path


@pytest.fixture(scope="session")
def _loaded() -> LanguageModel:
    return load_model(ModelConfig(path="tiny", device="cpu"))


@pytest.fixture
def tiny(_loaded: LanguageModel) -> LanguageModel:
    """A copy of the embedded model, to be changed at will."""
    return LanguageModel(
        copy.deepcopy(_loaded.module), _loaded.tokenizer, _loaded.device, _loaded.compute_dtype
    )
