"""The page that shows how to write a strategy: its code is run as it stands there."""

import re

import pytest

import cl_mofo
from cl_mofo.discovery import registry
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "own-strategy.md").read_text("utf-8")
SMALL = {
    "strategy": "sequential",
    "tasks": {"only": ["FOMC", "NumGLUE-cm"], "epochs": 1},
    "data": {"train_limit": 64, "test_limit": 2},
    "evaluation": {"initial": False, "losses": False},
    "save_model": False,
}


@pytest.fixture
def file(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    path = tmp_path / "l2.py"
    path.write_text(code)
    return path


def test_it_is_short(file):
    assert len(file.read_text().splitlines()) < 40


def test_it_is_listed_with_its_one_line(file):
    strategy = registry((file,)).strategy("l2")
    assert strategy.Config().strength == 1.0


def test_it_keeps_the_weights_near_and_composes(file, tmp_path):
    distances = {}
    for strategy in ("sequential", "l2", "mofo", "l2+mofo"):
        recipe = {**SMALL, "strategy": strategy, "imports": [str(file)], "l2": {"strength": 0.5}}
        results = cl_mofo.run(recipe, out=tmp_path / strategy)
        distances[strategy] = results["distance"][-1]
    assert distances["l2"] < distances["sequential"]
    assert distances["l2+mofo"] < distances["mofo"]
