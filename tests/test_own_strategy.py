"""The page that shows how to write a strategy: its code is run as it stands there."""

import re
from io import StringIO

import pytest
from rich.console import Console

import cl_mofo
from cl_mofo import listing
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "own-strategy.md").read_text("utf-8")
SMALL = {
    "tasks": {"only": ["FOMC"], "epochs": 2},
    "data": {"train_limit": 64, "test_limit": 1},
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
    console = Console(file=StringIO(), width=200)
    console.print(listing.strategies((file,)))
    (line,) = [line for line in console.file.getvalue().splitlines() if "l2.strength=1.0" in line]
    assert "L2: stay near the weights the run started from." in line


def test_it_keeps_the_weights_near_and_composes(file, tmp_path):
    distances = {}
    for strategy in ("mofo", "l2+mofo"):
        recipe = {**SMALL, "strategy": strategy, "imports": [str(file)], "l2": {"strength": 20}}
        results = cl_mofo.run(recipe, out=tmp_path / strategy)
        distances[strategy] = results["distance"][-1]
    assert distances["l2+mofo"] < 0.9 * distances["mofo"]
