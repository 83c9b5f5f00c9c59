"""`benchmarks/gpu/run.sh` on a tiny model and the CPU: the code that a GPU will run."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import finish, start

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.sh"


RECORD = """#!/bin/sh
echo "$*" >> "$0.asked"
"""
"""An interpreter that notes what it is asked to run."""


def stage(module, *arguments):
    """Be `python -m` with these words."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the stages find that the script asks for; each is run by a process of its own."""
    folder = tmp_path_factory.mktemp("results")
    python = folder / "python"
    python.write_text(RECORD)
    python.chmod(0o700)
    none = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "WHEELS"))
    done = subprocess.run(
        ["bash", str(SCRIPT), "--size", "tiny", "--device", "cpu"],
        env={k: v for k, v in os.environ.items() if k not in none}
        | {"RESULTS": str(folder), "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (folder / "python.asked").read_text().splitlines():
        option, *words = line.split()
        assert option == "-m"
        told = folder / f"{words[0]}.told"
        process = start(stage, *words, told=told, cwd=ROOT, env={**none, "RESULTS": str(folder)})
        assert finish(process) == 0, told.read_text()[-4000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_every_stage_says_when_and_where_it_ran(results):
    assert {"engines", "selection", "optimizer", "training", "scoring"} <= set(results)
    for found in results.values():
        assert found["date"]
        assert found["hardware"]["cpu"]
        assert {"python", "torch", "transformers", "deepspeed"} <= found["versions"].keys()


def test_the_selections_are_compared_and_agree(results):
    rows = results["selection"]["values"] + results["selection"]["steps"]
    assert len(rows) > 100
    assert sum(row["selected"] for row in rows) > 100_000
    assert results["selection"]["mismatches"] == sum(row["mismatches"] for row in rows) == 0


def test_the_optimizers_step_is_timed_beside_fused_adamw(results):
    rows = {row["name"]: row for row in results["optimizer"]["rows"]}
    for name in ("MoFO(0.05)", "MoFO(0.2)"):
        assert rows[name]["ratio"] > 0
        assert rows[f"{name}, pure"]["path"] == "Pure"
        assert f"{name}, without the check" in rows
    assert rows["AdamW(fused)"]["ratio"] == 1
    # Two layers of nine tensors each, the last norm, the embedding and the head.
    assert results["optimizer"]["tensors"] == 21


def test_each_engine_is_timed_with_both_optimizers(results):
    rows = results["engines"]["rows"]
    assert {(row["engine"], row["optimizer"]) for row in rows} == {
        (engine, optimizer)
        for engine in ("torch", "zero2", "fsdp")
        for optimizer in ("AdamW", "MoFO(0.05)")
    }
    for row in rows:
        # 8 examples of 32 tokens in a step.
        assert row["tokens_per_second"] == pytest.approx(256_000 / row["step_ms"], rel=0.01)
        assert 0 < row["update_ms"] < row["step_ms"]
    assert set(results["engines"]["mofo_over_adamw"]) == {"torch", "zero2", "fsdp"}


def test_what_is_held_is_what_docs_scale_says_of_one_rank(results):
    # Weights 4 and two moments 8; ZeRO keeps 4 more, of its own; gradients are 4. MoFO may keep
    # scratch of the largest tensor: 4 bytes for each of the 131,072 entries of the head.
    expected = {"torch": 12, "zero2": 16, "fsdp": 12}
    for row in results["engines"]["rows"]:
        held, resting = row["bytes_per_parameter"], expected[row["engine"]]
        scratch = 4 * 131_072 / row["parameters"] if "MoFO" in row["optimizer"] else 0
        for when, more in (("between steps", 0), ("before the update", 4)):
            assert -0.1 < held[when]["cpu"] - resting - more < scratch + 0.1


def test_training_is_timed_in_all_its_ways(results):
    rows = {row["name"]: row for row in results["training"]["rows"]}
    assert set(rows) == {"AdamW", "MoFO(0.05)", "AdamW, deterministic"}
    for row in rows.values():
        assert row["tokens/s"] == pytest.approx(1000 * row["tokens"] / row["ms"])
        assert 0 < row["mfu of what is computed"] < row["mfu with attention"]
        # 6 * (73,728 of two layers + 320 of norms + 32,768 of the head) * tokens / time / 989e12
        mfu = 6 * 106_816 * row["tokens"] / (row["ms"] / 1000) / 989e12
        assert row["mfu"] == pytest.approx(mfu)
    sequence = {row["name"]: row for row in results["training"]["more"]["The sequence of tasks"]}
    assert {"Trainer", "ours, AdamW", "ours, MoFO"} < set(sequence)
    assert sequence["ours, AdamW"]["loss apart"] < 0.01


def test_all_ways_to_answer_generate_as_many_tokens(results):
    rows = {row["name"]: row for row in results["scoring"]["rows"]}
    for name in ("TRACE's way", "ours"):
        assert rows[name]["tokens"] == 8 * 4 * 4
        assert rows[name]["unfinished"] == 8 * 4
