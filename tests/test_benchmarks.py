"""The benchmarks: their arithmetic by hand, each comparison at its smallest, and the page."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    growth,
    page,
    record,
    scoring,
    setting,
    strategies,
    synthetic,
    timing,
    training,
)
from benchmarks.contenders import padded
from benchmarks.gpu import training as on_gpu
from cl_mofo.data.tokenise import Example

COLLATOR = """
import torch
from inference.ICL import TASK_PROMT


class DataCollator:
    def __init__(self, tokenizer, max_prompt_len, max_ans_len, **settings):
        self.tokenizer, self.limit = tokenizer, max_prompt_len + max_ans_len

    def __call__(self, batch):
        texts = [row["prompt"] + row["answer"] for row in batch]
        rows = [self.tokenizer(text)["input_ids"][-self.limit :] for text in texts]
        ids = torch.tensor([[0] * (64 - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (64 - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids, "sources": []}
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script as its command does, and return what it wrote."""

    def do(script, *words):
        monkeypatch.setattr(sys, "argv", ["x.py", *words, "--out", str(tmp_path / "found.json")])
        script.main()
        return json.loads((tmp_path / "found.json").read_text())

    return do


def test_ratios_are_of_the_turns():
    times = {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 2.0, 2.0]}
    ours, theirs = timing.ratios(times, over="theirs")
    assert ours == {
        "name": "ours",
        "ms": 2000.0,
        "ratio": 1.0,
        "lowest": 0.5,
        "highest": 2.0,
        "turns": 3,
    }
    assert (theirs["ratio"], theirs["lowest"], theirs["highest"]) == (1.0, 1.0, 1.0)


def test_turns_alternate_and_the_first_do_not_count():
    called = []
    times = timing.interleaved({c: lambda c=c: called.append(c) for c in "ab"}, 3, warmup=2)
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}
    assert "".join(called) == "abba" + "abba" + "ab"


def test_the_exponent_of_a_power():
    assert timing.exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_a_record_says_what_it_depends_on_and_no_place(tmp_path, capsys):
    rows = [{"name": "a", "ratio": 1234.5, "same": True, "none": None}]
    kept = record.record("x", {"data": "/home/me/trace", "n": [1]}, rows, out=tmp_path, times=[1.5])
    assert json.loads((tmp_path / "x.json").read_text()) == kept
    assert kept["settings"] == {"data": "trace", "n": [1]}
    assert kept["rows"] == rows
    assert kept["times"] == [1.5]
    assert kept["versions"]["torch"] == torch.__version__
    assert {"cpu", "cores", "threads"} <= kept["hardware"].keys()
    assert kept["date"][:2] == "20"
    assert "1,234" in capsys.readouterr().out


def test_both_ways_of_padding():
    examples = [Example((5, 6, 7), 1), Example((8, 9), 1)]
    left, right = (padded(examples, 0, left=left) for left in (True, False))
    assert left["input_ids"].tolist() == [[5, 6, 7], [0, 8, 9]]
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert left["labels"].tolist() == [[-100, -100, 7], [-100, -100, 9]]
    assert right["labels"].tolist() == [[-100, -100, 7], [-100, 9, -100]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_random_texts_have_the_lengths_asked_for():
    made = setting.setting("random:tiny", None, ["data.train_limit=40"], device="cpu")
    loop = made.loop("sequential", language_model=made.language_model)
    for plan in made.plans:
        prompts, answers = synthetic.DECILES[plan.task.name]
        for example in loop.encoded(made.suite.records[plan.task.name]["train"], plan):
            assert 2 <= example.supervised <= max(2, math.ceil(0.05 * answers[-1]))
            assert len(example) - example.supervised <= max(2, math.ceil(0.05 * prompts[-1]))


def test_operations_are_those_that_torch_counts():
    made = setting.setting("random:tiny", None, ["data.train_limit=2"], device="cpu")
    shape, module = synthetic.SHAPES["tiny"], made.language_model.module
    module.set_attn_implementation("eager")  # torch counts no fused attention on a CPU
    example = Example(tuple(range(1, 65)), 8)
    counted = on_gpu.flops(made, shape, [example])
    with FlopCounterMode(display=False) as counter:
        module(torch.tensor([example.ids])).logits.sum().backward()
    # torch counts attention to later tokens too, which is as much again.
    attention = counted["mfu with attention"] - counted["mfu"]
    assert counter.get_total_flops() == pytest.approx(counted["mfu"] + 2 * attention, rel=0.01)
    head = 6 * shape[0] * shape[-1]
    assert counted["mfu with attention"] - counted["mfu of what is computed"] == head * (64 - 8)


def test_the_trainers_do_the_same_work(run, tmp_path):
    (tmp_path / "utils" / "data").mkdir(parents=True)
    (tmp_path / "utils" / "data" / "data_collator.py").write_text(COLLATOR)
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "ICL.py").write_text("TASK_PROMT = {}\n")
    found = run(
        training,
        *("--tasks", "FOMC", "NumGLUE-cm", "--steps", "2", "--trace", str(tmp_path)),
        *("--batch-size", "4", "--micro-batch", "2", "--precision", "float32"),
    )
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        training.PLAIN,
        training.TRAINER,
        training.OURS,
        training.MOFO,
        training.TRACE,
    ]
    for name in (training.TRAINER, training.OURS):
        assert rows[name]["loss apart"] < 1e-4
    assert rows[training.MOFO]["first loss"] == pytest.approx(rows[training.PLAIN]["first loss"])
    assert rows[training.OURS]["computed/real"] <= rows[training.PLAIN]["computed/real"]
    # The stub pads to 64 and learns prompts too.
    assert rows[training.TRACE]["computed/real"] > rows[training.PLAIN]["computed/real"]
    assert [row["task"] for row in found["more"]["Seconds by task"]] == ["FOMC", "NumGLUE-cm"]


def test_peak_memory_is_a_processs_own(monkeypatch):
    words = ["--tasks", "FOMC", "--batch-size", "2", "--micro-batch", "2", "--memory-task", "FOMC"]
    monkeypatch.setattr(sys, "argv", ["x.py", *words])
    found = training.peaks(training.parse(), "float32", [training.OURS])
    assert 0.1 < found[training.OURS] < 10


def test_all_ways_to_answer_agree_where_they_end(run):
    found = run(scoring, "--tasks", "FOMC", "NumGLUE-ds", "--tune-steps", "4", "--examples", "6")
    rows = {row["name"]: row for row in found["rows"]}
    assert {scoring.TRACE, scoring.OURS} <= rows.keys()
    assert rows[scoring.TRACE]["both ended"] == 12 - rows[scoring.TRACE]["unfinished"]
    assert rows[scoring.OURS]["both ended"] > 0
    assert rows[scoring.OURS]["other texts"] == 0
    assert all(row["equal scores"] for row in rows.values())
    assert len(found["more"]["By task"]) == 2 * len(rows)


@pytest.mark.filterwarnings("ignore:Call to deprecated function:DeprecationWarning")
def test_each_strategy_stands_beside_avalanches(run):
    found = run(strategies, "--tasks", "FOMC", "NumGLUE-cm", "--steps", "2", "--batch-size", "2")
    assert {(row["name"], row["side"]) for row in found["rows"]} == {
        (name, side) for name in ("ewc", "gem", "agem", "replay") for side in ("ours", "Avalanche")
    }
    rows = {(r["name"], r["side"], r["past tasks"]): r for r in found["more"]["By task"]}
    assert len(rows) == 5 * 2 * 2
    for side in ("ours", "Avalanche"):
        assert rows["sequential", side, 1]["step vs plain"] == 1
        assert rows["gem", side, 1]["step ms"] > 0


def test_the_exponent_of_what_a_strategy_adds():
    # Plain steps take 10 ms; with t past tasks GEM's take 10 + 5 t^2, EWC's 10.
    added = {"sequential": lambda t: 0, "gem": lambda t: 5 * t**2, "ewc": lambda t: 0}
    steps = {(n, t): 10 + f(t) for n, f in added.items() for t in range(4)}
    rows = [
        {
            "name": name,
            "side": "ours",
            "past tasks": past,
            "step ms": ms,
            "step vs plain": ms / 10,
            "task vs plain": 2.0,
        }
        for (name, past), ms in steps.items()
    ]
    gem, ewc = strategies.summary(rows)
    assert gem["exponent"] == pytest.approx(2)
    assert (gem["step vs plain, 1 past task"], gem["3 past tasks"]) == (1.5, 5.5)
    assert ewc["exponent"] is None


def test_growth_is_fitted_to_every_point(run):
    found = run(
        growth,
        *("--lengths", "16", "32", "64", "--hidden", "64", "128", "--layers", "1"),
        *("--at-hidden", "64", "--at-length", "16", "--texts", "2", "--repeats", "1"),
    )
    length, size = found["rows"]
    assert (length["from"], length["to"], length["points"]) == (16, 64, 3)
    assert size["points"] == 2
    points = found["more"]["Points"]
    assert [row["ratio"] for row in points if row["size"] == 16] == [1]
    sizes, costs = zip(*((r["size"], r["ratio"]) for r in points[:3]), strict=True)
    assert length["exponent"] == pytest.approx(timing.exponent(sizes, costs))


ORIGIN = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11", "torch": "2.13"},
    "commit": "0123456789abcdef-dirty",
    "hardware": {"cpu": "A CPU", "cores": 2, "threads": 1},
}


def test_the_page_shows_each_record_and_what_was_never_measured(tmp_path, monkeypatch):
    for folder in ("results", "gpu", "docs"):
        (tmp_path / folder).mkdir()
    optimizer = ORIGIN | {
        "benchmark": "optimizer",
        "command": ["optimizer.py", "--threads", "2"],
        "rows": [
            {"name": "AdamW", "ratio": 1, "times": [1.5]},
            {"name": "MoFO", "ratio": 2.345, "times": [3.5]},
        ],
        "more": {"By tensor": [{"entries": 1000, "exact": True}]},
    }
    fits = [{"time over": "tokens", "exponent": 1.25, "upper half": 1.5}]
    points = [{"grows": "tokens", "size": n, "ratio": n / 8} for n in (8, 16)]
    grown = ORIGIN | {
        "benchmark": "growth",
        "command": ["growth.py"],
        "rows": fits,
        "more": {"Points": points},
    }
    engines = ORIGIN | {
        "stage": "engines",
        "command": ["engines.py", "--size", "1.1b"],
        "hardware": ORIGIN["hardware"] | {"gpu": "A GPU"},
        "rows": [{"engine": "torch", "step_ms": 1234.5, "gib": {"peak": 3}}],
    }
    for folder, found in (("results", optimizer), ("results", grown), ("gpu", engines)):
        name = found.get("benchmark") or found["stage"]
        (tmp_path / folder / f"{name}.json").write_text(json.dumps(found))
    words = [f"--{folder}={tmp_path / folder}" for folder in ("results", "gpu", "docs")]
    monkeypatch.setattr(sys, "argv", ["page.py", *words])
    page.main()
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "| AdamW | 1 |\n| MoFO | 2.35 |\n" in text
    assert "| entries | exact |\n| --: | --: |\n| 1,000 | yes |\n" in text
    assert (
        "`python -m benchmarks.optimizer --threads 2`: 2026-01-02; A CPU, 2 cores, 1 threads; "
        "python 3.11, torch 2.13; commit 0123456789ab with changes.\n"
    ) in text
    assert "`python -m benchmarks.gpu.engines --size 1.1b`: 2026-01-02; A GPU, A CPU" in text
    assert "| torch | 1,234 |\n" in text
    assert text.count("**Not measured.**") == len(page.SECTIONS) - 3
    after = text.split("## GPU: training")[1].split("## ")[0]
    assert "**Not measured.**" in after
    image = tmp_path / "docs" / "images" / "performance-growth.png"
    assert "![How cost grows](images/performance-growth.png)" in text
    assert image.read_bytes()[:4] == b"\x89PNG"


def test_every_script_says_what_it_compares():
    folder = Path(page.__file__).parent
    for path in sorted([*folder.glob("*.py"), *folder.glob("gpu/*.py")]):
        text = path.read_text()
        if "def main()" in text:
            assert re.search(r"python (-m benchmarks\.|benchmarks/)", text), path.name
            assert re.search(r"(description=|parser\()__doc__", text), path.name


def test_the_page_is_the_one_that_the_kept_files_give():
    text = (record.ROOT / "docs" / "performance.md").read_text()
    measured = [page.read(folder) for folder in (record.RESULTS, page.GPU_RESULTS)]
    assert text == page.page(*measured)
