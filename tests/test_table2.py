"""What makes docs/results/table2-smollm2.md, on the embedded model."""

import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import cl_mofo
from benchmarks.table2 import kept, orderings, page
from benchmarks.table2.choices import Tried, beyond, choices, remarks
from benchmarks.table2.prose import prose
from cl_mofo.mappings import merge
from cl_mofo.recipes import read_recipe
from cl_mofo.report import load_results, load_runs
from tests.report_runs import make
from tests.small_run import SMALL, data_of

ROOT = Path(__file__).parent.parent
TEXT = "The bridge was closed in March. Nobody had asked why, and 12 boats lay below it.\n" * 9


def test_the_prose_has_neither_numbers_nor_brackets():
    source = '''
bible = Bible(
    """
9. Before it. 1. The former treatise have I made, O Theophilus, ( as said,) 2.( of [all] that was.)
3. And [he] went.

1. Paul, a servant of Jesus Christ, called
""",
    "KJV")
'''
    assert prose(source) == (
        "The former treatise have I made, O Theophilus, (as said,) (of all that was.)\n"
        "And he went.\n"
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page over small runs, and their folder."""
    out = tmp_path_factory.mktemp("table2")
    (out / "prose.txt").write_text(TEXT, "utf-8")
    small = merge(SMALL, {"save_model": False, "evaluation": {"initial": False, "tasks": "ends"}})
    rows = [{"strategy": "sequential"}, {"strategy": "mofo"}]
    table = {"rows": rows, "vary": {"seed": [1, 2]}}
    with_prose = merge(small, {"data": {"prose": str(out / "prose.txt")}})
    cl_mofo.run_sweep(with_prose | {"sweep": table}, out=out / "table")
    (out / "same_rate").mkdir()
    for seed in (1, 2):  # of one rate here, as all are
        name = f"sequential-seed{seed}"
        shutil.copytree(out / "table" / name, out / "same_rate" / name)
    shutil.copytree(out / "table" / "sequential-seed1", out / "before")
    kept = json.loads((out / "before/results.json").read_text())
    kept["initial"] = [10.0 * number for number, _ in enumerate(kept["tasks"], 1)]
    (out / "before/results.json").write_text(json.dumps(kept))
    rates = {"vary": {"optimizer.lr": [1e-4, 1e-3]}}
    cl_mofo.run_sweep(small | {"sweep": rates}, out=out / "rates")
    (out / "opening.md").write_text("# A small table\n", "utf-8")
    page.main(out, out / "docs", out / "opening.md")
    return (out / "docs" / page.PAGE).read_text("utf-8"), load_runs([out / "table"]), out


def test_the_page_has_the_runs_figures_beside_the_papers(made):
    text, runs, out = made
    row = next(line for line in text.splitlines() if line.startswith("| mofo | 2 ")).split(" | ")
    ops = [run.op[-1] for run in runs if run.strategy == "mofo"]
    assert row[2] == f"{sum(ops) / 2:.1f} ± {abs(ops[0] - ops[1]) / math.sqrt(2):.1f}"
    assert row[5:7] == ["41.3", "-5.4"]
    assert (out / "docs" / page.PICTURE).read_bytes()[:4] == b"\x89PNG"
    assert f"]({page.PICTURE})" in text
    sha = json.loads((out / "table/mofo-seed1/manifest.json").read_text())["data"]["prose"]
    assert sha in text
    assert "1e-04" in text or "0.0001" in text
    count = len(runs[0].tasks)
    cells = [5.0 * (count + 1), *(10.0 * number for number in range(1, count + 1))]
    assert f"| before any training | {' | '.join(map(str, cells))} |" in text
    assert text.startswith("# A small table\n")


def test_the_page_has_the_baseline_at_mofos_rate(made):
    text, runs, out = made
    last = {run.path.parent.name: run.op[-1] for run in runs}
    apart = ", ".join(f"{last[f'mofo-seed{s}'] - last[f'sequential-seed{s}']:+.1f}" for s in (1, 2))
    assert f"MoFO minus sequential, seed by seed: OP {apart}; BWT " in text
    assert page.one_rate(out / "docs", runs) == []


def test_the_page_is_the_same_of_what_is_kept_of_the_runs(made, tmp_path):
    text, runs, out = made
    folder, docs = tmp_path / "kept", tmp_path / "docs"
    kept.main(out, folder)
    page.main(folder, docs, out / "opening.md")
    assert (docs / page.PAGE).read_text("utf-8") == text
    files = [file for file in folder.rglob("*") if file.is_file()]
    told = "".join(file.read_text("utf-8") for file in files)
    assert str(out) not in told
    assert "prediction" not in told
    (folder / "reading.md").write_text("Much was learned.\n", "utf-8")
    page.main(folder, docs, out / "opening.md")
    read = (docs / page.PAGE).read_text("utf-8")
    assert read.replace("## In short\n\nMuch was learned.\n\n", "") == text != read
    last = f"{len(runs[0].tasks):02d}-{runs[0].tasks[-1]}"
    row = f"predictions/{last}/{runs[0].tasks[-1]}.jsonl"
    written, short = (
        json.loads((of / "table/mofo-seed1" / row).read_text("utf-8").split("\n")[0])
        for of in (out, folder)
    )
    assert short["score"] == written["score"]
    assert written["reference"] not in told


def test_the_page_says_from_when_to_when(made):
    _, runs, out = made
    file = out / "table/mofo-seed1/manifest.json"
    kept = file.read_text()
    file.write_text(json.dumps(json.loads(kept) | {"started": "2020-01-02T03:04:05"}))
    told = page.manifest(runs)
    file.write_text(kept)
    last = max(
        json.loads((run.path.parent / "manifest.json").read_text())["started"] for run in runs
    )
    assert f"- dates: 2020-01-02 to {last[:10]}\n" in told


def test_runs_that_the_opening_does_not_describe_need_another(made):
    with pytest.raises(SystemExit, match=r"data\.train_limit is .*--opening"):
        page.main(made[2], made[2] / "docs")


def tried_run(folder, strategy, rate, op=50.0, distance=0.5):
    counts = {"A": {"train": 8, "eval": 25, "test": 4}}
    run = make(folder, [[op]], tasks=["A"], strategy=strategy, distance=[distance], examples=counts)
    (folder / "recipe.yaml").write_text(f"optimizer: {{lr: {rate}}}\n")
    return load_results(run.path)


def test_what_was_chosen_and_what_was_not_is_told(tmp_path):
    tried = [  # the best: hft 2, of a tie the closest; mofo 1, below which nothing was tried
        tried_run(tmp_path / "rates/h1", "hft", 1, 50),
        tried_run(tmp_path / "rates/h2", "hft", 2, 60, 0.1),
        tried_run(tmp_path / "rates/h3", "hft", 3, 60, 0.2),
        tried_run(tmp_path / "rates/m1", "mofo", 1, 60),
        tried_run(tmp_path / "rates/m2", "mofo", 2, 50),
    ]
    table = [
        tried_run(tmp_path / "t" / name, name, rate)
        for name, rate in (("hft", 3), ("mofo", 1), ("gem", 2))
    ]
    found = [Tried.of(run, "optimizer.lr") for run in tried]
    ends, other, blind = remarks(found, table, "optimizer.lr")
    assert ends.endswith(": mofo (1).")
    assert "another value than the best for: hft (3)." in other
    assert "nothing was chosen, for: gem (2)." in blind
    text = choices(tmp_path, table)
    assert "| hft | 50.0 / – / 50.0 | **60.0 / – / 60.0** | 60.0 / – / 60.0 |" in text
    # 25 examples of one task, half of them right: 100 sqrt(0.25 / 25).
    assert "8 training and 25 validation examples; seed 1" in text
    assert "up to 10.0 points" in text
    assert "| mofo | **60.0 / – / 60.0** | 50.0 / – / 50.0 | – |" in text
    assert blind in text
    (tmp_path / "tried.csv").write_text(
        "# before\nkey,strategy,value,op,bwt,learned\noptimizer.lr,mofo,0.5,70.1,,70.2\n"
    )
    text = choices(tmp_path, table)
    assert "| mofo | **70.1 / – / 70.2** | 60.0 / – / 60.0 | 50.0 / – / 50.0 | – |" in text


def test_the_rates_go_on_past_the_best_until_it_is_not_at_their_end(tmp_path):
    scores = {5e-5: 30, 2e-4: 20, 1.25e-5: 40, 3.125e-6: 10}
    runs = []
    for rate, following in ((5e-5, None), (2e-4, 1.25e-5), (1.25e-5, 3.125e-6), (3.125e-6, None)):
        run = tried_run(tmp_path / str(rate), "hft", rate, scores[rate])
        runs.append(Tried.of(run, "optimizer.lr"))
        if len(runs) > 1:
            assert beyond(runs, "hft") == following


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        ([], "not measured"),
        ([1.0], "yes (one seed)"),
        ([-1.0], "no (one seed)"),
        ([1.0, 2.0], "in the mean"),
        ([1.0, 2.0, 0.5], "yes"),
        ([1.0, 2.0, -0.5], "in the mean"),
        ([1.0, -2.0, 0.5], "no"),
        ([0.0, 0.0, 0.0], "no"),
    ],
)
def test_the_verdicts_follow_their_rule(apart, said):
    assert orderings.verdict(apart, 2.9) == said
    assert orderings.verdict([-value for value in apart], -2.9) == said


def test_the_paper_says_what_the_claims_say():
    figures = orderings.paper()
    for _, better, worse in orderings.CLAIMS:
        assert figures[better].op > figures[worse].op


def test_the_two_recipes_have_the_same_rows():
    for_gpu, for_cpu = (read_recipe(f"table2-smollm2{end}")["sweep"] for end in ("", "-cpu"))
    assert [r["strategy"] for r in for_gpu["rows"]] == [r["strategy"] for r in for_cpu["rows"]]
    assert for_gpu["vary"] == for_cpu["vary"] == {"seed": [1, 2, 3]}
    nine = [row["strategy"] for row in read_recipe("table2")["sweep"]["rows"]]
    assert [r["strategy"] for r in for_gpu["rows"]] == [*nine, "lora", "lora+mofo"]


def test_the_gpus_script_runs_and_goes_on(tmp_path):
    data, pack = tmp_path / "data", tmp_path / "pack"
    data.mkdir()
    (pack / "0").mkdir(parents=True)
    with tarfile.open(pack / "0/data.tar.gz", "w:gz") as archive:
        archive.add(data_of(data), ".")
    (pack / "0/prose.txt").write_text(TEXT, "utf-8")
    recipe = merge(SMALL, {"save_model": False, "evaluation": {"initial": False}})
    recipe["data"] = {"suite": "trace", "path": "$TRACE_DIR", "prose": "$PROSE", "train_limit": 4}
    del recipe["model"]
    (tmp_path / "small.yaml").write_text(
        json.dumps(recipe | {"sweep": {"vary": {"seed": [1, 2]}}}), "utf-8"
    )
    paths = {"PACK": pack, "RESULTS": tmp_path / "results", "RECIPE": tmp_path / "small.yaml"}
    environment = os.environ | {name: str(path) for name, path in paths.items()}
    environment |= {"MODEL": "tiny", "PYTHON": sys.executable, "WHEELS": str(tmp_path / "none")}

    def told(*options):
        done = subprocess.run(
            ["bash", str(ROOT / "benchmarks/gpu/table2.sh"), "run", *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with tarfile.open(tmp_path / "results/table2.tar.gz") as archive:
            return done.stdout, sorted(n for n in archive.getnames() if n.endswith("results.json"))

    assert told("--set", "seed=1")[1] == ["out/table/mofo-seed1/results.json"]
    (tmp_path / "results/table2.tar.gz").rename(pack / "0/table2.tar.gz")
    subprocess.run(["rm", "-r", str(pack / "work")], check=True)
    said, there = told()
    assert there == ["out/table/mofo-seed1/results.json", "out/table/mofo-seed2/results.json"]
    assert "run 1 of 2: mofo-seed1: skipped, already finished" in said
