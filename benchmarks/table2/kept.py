"""Keep what the table's runs measured, small enough and free enough for a repository:

    python -m benchmarks.table2.kept OUT TO

Each finished run of OUT becomes a folder in TO with its results, recipe and manifest, and what it
scored on each test example in the two states that are compared. Texts stay behind: an answer is
left out, its reference is a digest. `report`, `compare` and the page read such folders like runs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.table2.choices import finished
from cl_mofo.report import RunResults

TABLES, TUNINGS = ("table", "same_rate", "before"), ("rates", "fractions")
MODEL = "SmolLM2-135M-Instruct"


def main(out: Path, to: Path) -> None:
    """Write or replace the folders of all finished runs."""
    for kind in (*TABLES, *TUNINGS):
        for run in finished(out / kind):
            keep(run, to / run.path.parent.relative_to(out), texts=kind in TABLES)


def keep(run: RunResults, to: Path, texts: bool) -> None:
    """Write one run's folder.

    Args:
        run: a finished one.
        to: the folder.
        texts: whether the scores of single examples are kept.
    """
    folder = run.path.parent
    to.mkdir(parents=True, exist_ok=True)
    results = json.loads(run.path.read_text("utf-8"))
    _write(to / "results.json", results | {"model": MODEL})
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["model"]["path"] = MODEL
    del manifest["command"]  # has the folders of one machine; the recipe says the same
    _write(to / "manifest.json", manifest)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    recipe["model"]["path"] = MODEL
    recipe["data"] |= {"path": "$TRACE_DIR", "prose": recipe["data"]["prose"] and "$PROSE"}
    (to / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    for place, task in enumerate(run.tasks if texts else (), 1):
        last = f"{len(run.tasks):02d}-{run.tasks[-1]}"
        for file in {f"{place:02d}-{task}/{task}.jsonl", f"{last}/{task}.jsonl"}:
            _keep_scores(folder / "predictions" / file, to / "predictions" / file)


def _keep_scores(file: Path, to: Path) -> None:
    lines = []
    for line in file.read_text("utf-8").removesuffix("\n").split("\n"):
        row = json.loads(line)
        digest = hashlib.sha256(row["reference"].encode()).hexdigest()[:8]
        lines.append({"index": row["index"], "reference": digest, "score": row["score"]})
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
