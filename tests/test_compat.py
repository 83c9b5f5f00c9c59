"""The torchvision repair: avalanche and transformers' Llama import beside a CPU torch."""

import subprocess
import sys

import pytest

from cl_mofo import compat

USE = (
    "from cl_mofo.compat import repair_torchvision; library = repair_torchvision();"
    "assert repair_torchvision() is library;"
    "import torchvision, torch;"
    "from avalanche.training.templates import SupervisedTemplate;"
    "from transformers import LlamaForCausalLM;"
    "print(hasattr(torch.ops.torchvision, 'nms'))"
)


def test_avalanche_and_llama_import_after_the_repair():
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


@pytest.fixture
def fresh_repair():
    compat.repair_torchvision.cache_clear()
    yield
    compat.repair_torchvision.cache_clear()
    compat.repair_torchvision()


@pytest.mark.usefixtures("fresh_repair")
def test_without_torchvision_there_is_nothing_to_repair(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(compat.importlib, "import_module", absent)
    assert compat.repair_torchvision() is None


@pytest.mark.usefixtures("fresh_repair")
def test_another_failure_is_not_swallowed(monkeypatch):
    def broken(name):
        raise RuntimeError("libcuda is from the wrong century")

    monkeypatch.setattr(compat.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="wrong century"):
        compat.repair_torchvision()
