"""benchmarks/optimizer.py at its smallest, with a stand-in for the authors' optimizer."""

import json

import pytest
import torch

from benchmarks import optimizer
from benchmarks.authors import authors_optimizer

FILTERING = """
import torch

class Helper(torch.optim.SGD):
    pass

class TheirMoFO(torch.optim.Optimizer):
    def __init__(self, named, lr, alpha):
        names = [name for name, _ in named]
        super().__init__([p for _, p in named], {"lr": lr, "alpha": alpha, "names": names})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= group["lr"] * p.grad
"""


def test_it_compares_the_same_tensors_and_says_how_they_grow(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "opt.py").write_text(FILTERING)
    monkeypatch.setattr(optimizer, "LAYER", {"weight": (40, 50), "norm": (40,)})
    monkeypatch.setattr(optimizer, "EMBEDDING", {"embedding": (90, 50)})
    monkeypatch.setattr(optimizer, "SLICE", {"embedding": (90, 50)})
    options = ["--fraction", "0.05", "--threads", "1", "--repeats", "2", "--sizes", "800", "8000"]
    given = ["--authors", str(tmp_path / "code"), "--out", str(tmp_path)]
    optimizer.main([*options, *given])
    kept = json.loads((tmp_path / "optimizer.json").read_text())
    told = {(row["optimizer"], row["tensors"]) for row in kept["rows"]}
    names = [optimizer.FUSED, optimizer.FOREACH, optimizer.COMPILED, optimizer.PURE]
    names.append(optimizer.AUTHORS)
    tensors = ("one layer", "few rows touched", "layer and embedding")
    assert told == {(name, each) for name in names for each in tensors}
    assert all(row["lowest"] <= row["ratio"] <= row["highest"] for row in kept["rows"])
    (grown,) = kept["more"].values()
    assert [row["parameters"] for row in grown] == [800, 8000]
    assert isinstance(kept["exponent"], float)
    assert str(tmp_path) not in json.dumps(kept)


def test_the_authors_optimizer_gets_what_its_arguments_are_called(tmp_path):
    file = tmp_path / "opt.py"
    file.write_text(FILTERING)
    named = [("norm", torch.nn.Parameter(torch.ones(2)))]
    found = authors_optimizer(file, named, 0.2, 0.5)
    (group,) = found.param_groups
    assert (group["lr"], group["alpha"], group["names"]) == (0.5, 0.2, ["norm"])


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import nothing_of_that_name  # mofo", "No module named 'nothing_of_that_name'"),
        ("MoFO = 1", "no class with mofo in its name"),
        (FILTERING.replace("alpha):", "alpha, other):"), "cannot be made: .*other"),
    ],
)
def test_what_cannot_be_taken_says_why(code, why, tmp_path):
    (tmp_path / "opt.py").write_text(code)
    named = [("norm", torch.nn.Parameter(torch.ones(2)))]
    with pytest.raises(SystemExit, match=why):
        authors_optimizer(tmp_path, named, 0.2, 0.5)
