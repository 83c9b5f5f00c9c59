"""What the tests share: real TRACE data if it is there, the embedded model, one thread."""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "CL_MOFO_CACHE" not in os.environ:  # workers and other processes of the tests share one
    os.environ["CL_MOFO_CACHE"] = CACHE = tempfile.mkdtemp(prefix="cl-mofo-tests-")
    OWNER = os.getpid()

    @atexit.register
    def _forget() -> None:
        if os.getpid() == OWNER:  # and no fork of it
            shutil.rmtree(CACHE, ignore_errors=True)


import pytest
import torch

from cl_mofo.compat import repair_torchvision
from cl_mofo.config import ModelConfig
from cl_mofo.model import LanguageModel, load_model
from cl_mofo.optim import native, nonfinite

torch.set_num_threads(1)
repair_torchvision()  # before any test file imports avalanche

LONG = (
    "tutorial",
    "engines",
    "ranks",
    "gpu_benchmark",
    "resume_ranks",
    "cli",
    "triton",
    "kill",
    "memory",
)
"""Files that take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that workers that share the files out end together."""
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _no_answers_of_other_tests() -> Iterator[None]:
    """What one test has generated is not what another looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cl_mofo.evaluation.answer_cache.cache_folder", lambda kind: None)
        yield


@pytest.fixture(scope="module", params=["pure", "native"])
def every_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """MoFO steps without compiled code, and then with it."""
    if request.param == "native":
        if native.library(torch.float32) is None:
            pytest.skip("there is no compiled code on this machine; the log says why")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for module in (native, nonfinite):
            patch.setattr(module, "library", lambda dtype: None)
        yield


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


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user's own files of the small run (small_run.py)."""
    from tests.small_run import data_of

    return data_of(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def small_recipe(small_data: Path) -> dict[str, Any]:
    """The recipe of the small run over these files."""
    from tests.small_run import SMALL

    return SMALL | {"data": {**SMALL["data"], "suite": "trace", "path": str(small_data)}}


@pytest.fixture(scope="session")
def whole(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the undisturbed small run."""
    import cl_mofo

    folder = tmp_path_factory.mktemp("runs") / "whole"
    cl_mofo.run(small_recipe, out=folder)
    return folder


@pytest.fixture(scope="session")
def _stopped(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.small_run import stopped_run

    return stopped_run(small_recipe, tmp_path_factory.mktemp("runs") / "stopped")


@pytest.fixture
def stopped(_stopped: Path, tmp_path: Path) -> Path:
    """The folder of a small run that was stopped in the middle, to be done with what one likes."""
    return Path(shutil.copytree(_stopped, tmp_path / "run"))
