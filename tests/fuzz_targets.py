"""What reads others' files, each with valid inputs to begin with and a second look at what it took.

A target is given bytes. It returns where it takes them, raises `UserError` or `DamagedError` where
it refuses them; everything else is a fault.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from cl_mofo import mini
from cl_mofo.checkpoint.rows import read_rows, written_rows
from cl_mofo.claim import manifest_of
from cl_mofo.config import SWEEP
from cl_mofo.data import jsonlist
from cl_mofo.data.records import read_folder
from cl_mofo.errors import UserError
from cl_mofo.expansion import expand
from cl_mofo.files import DamagedError
from cl_mofo.mappings import parsed
from cl_mofo.recipes import builtin_recipes, read_request, to_mapping
from cl_mofo.report import FORMATS, draw, load_runs, matrix_markdown, render
from cl_mofo.resolve import resolve
from tests.fuzz_checkpoint import seeds, take_checkpoint
from tests.mutations import mutated
from tests.report_runs import SEEDS, record

REFUSED = (UserError, DamagedError)
ACTING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What no text that is shown may hold."""


@dataclass(frozen=True)
class Target:
    """Something that reads.

    Args:
        seeds: valid inputs.
        take: reads an input in an empty folder of its own, and looks at what it took.
    """

    seeds: list[bytes]
    take: Callable[[bytes, Path], None]


@functools.lru_cache(maxsize=1)
def place() -> Path:
    """Return a folder for this process's inputs, in memory where there is such a place."""
    memory = Path("/dev/shm")
    holder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    place.__dict__["holder"] = holder  # removed with the process
    return Path(holder.name)


def _one_in(many: int, data: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(data).digest()[:4]) % many == 0


def _finite(value: Any) -> bool:
    """Tell whether all numbers in a plain value are finite."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def take_recipe(data: bytes, folder: Path) -> None:
    """Read a recipe's file as the command line does; a sweep's first runs."""
    file = folder / "recipe.yaml"
    file.write_bytes(data)
    request = read_request(str(file))
    if request.several:
        runs = list(itertools.islice(expand(request.given).items(), 2))
        assert all(re.fullmatch(r"[A-Za-z0-9_=+][A-Za-z0-9._+=-]{0,130}", name) for name, _ in runs)
        given = [read_request(run).complete() for _, run in runs]
    else:
        given = [request.complete()]
    for raw in given:
        recipe = resolve(raw)
        kept = to_mapping(recipe)
        assert SWEEP not in kept
        assert _finite(kept)
        assert not recipe.imports
        assert not recipe.model.trust_remote_code
        if _one_in(10, data):  # pure Python's YAML takes most of the time
            kept = parsed(yaml.safe_dump(kept, allow_unicode=True), "again")
        assert resolve(kept) == recipe


def take_json(data: bytes, folder: Path) -> None:
    """Read a list value by value in pieces of a few bytes, and compare with `json`."""
    size, jsonlist.CHUNK = jsonlist.CHUNK, 1 + len(data) % 17
    try:
        found = [item.value for item in jsonlist.values(io.BytesIO(data))]
    except jsonlist.MalformedError as error:
        raise UserError(str(error)) from error
    finally:
        jsonlist.CHUNK = size
    assert repr(found) == repr(json.loads(data.decode("utf-8-sig")))


def take_data(data: bytes, folder: Path) -> None:
    """Read a folder of data whose test split is the input."""
    (folder / "FOMC").mkdir(exist_ok=True)
    for split in ("train", "eval"):
        (folder / "FOMC" / f"{split}.json").write_bytes(b'[{"prompt": "a", "answer": "b"}]')
    (folder / "FOMC" / "test.json").write_bytes(data)
    found = read_folder(folder, ["FOMC"])
    rows = found.records["FOMC"]["test"]
    assert len(rows) > 0
    for row, raw in zip(rows, json.loads(data.decode("utf-8-sig")), strict=True):
        assert row == {key: raw[key] for key in ("prompt", "answer")}
        assert all(isinstance(text, str) and text.encode() for text in row.values())
    assert found.hashes["FOMC/test.json"] == hashlib.sha256(data).hexdigest()


RUN_FILES = ("results.json", "recipe.yaml", "manifest.json")


def take_run(data: bytes, folder: Path) -> None:
    """Report over a good run and one of which a file is the input: which, its first byte says."""
    which = RUN_FILES[data[0] % len(RUN_FILES)] if data else RUN_FILES[0]
    for run in ("good", "other"):
        (folder / run).mkdir(exist_ok=True)
        for name, content in zip(RUN_FILES, GOOD_RUN, strict=True):
            (folder / run / name).write_bytes(
                data[1:] if (run, name) == ("other", which) else content
            )
    manifest_of(folder / "other")
    runs = load_runs([folder])
    for run in runs:
        cells = [cell for row in (*run.scores, run.initial or ()) for cell in row]
        assert all(cell is None or 0 <= cell <= 100.001 for cell in cells)
        assert all(f is None or abs(f) <= 100.001 for f in (*run.op, *run.bwt, run.learned))
    texts = [render(runs, form) for form in FORMATS] + [matrix_markdown(run) for run in runs]
    assert not any(map(ACTING.search, texts))
    if _one_in(300, data):  # a figure takes as long as a hundred tables
        draw(runs, folder / "figures")
        assert (folder / "figures" / "matrix-other.png").is_file()
        assert {path.parent for path in folder.rglob("*.png")} == {folder / "figures"}


def take_rows(data: bytes, folder: Path) -> None:
    """Read figures of steps."""
    (folder / "steps.parquet").write_bytes(data)
    for row in read_rows(folder / "steps.parquet"):
        assert all(isinstance(key, str) for key in row)


def _recipes() -> Iterator[bytes]:
    for text in builtin_recipes().values():
        yield text.encode()
    yield json.dumps(to_mapping(resolve({})), indent=1).encode()
    yield yaml.safe_dump(to_mapping(resolve({"protocol": "trace-v1"}))).encode()
    yield b"strategy: mofo\nsweep:\n  rows: [{optimizer: {lr: 1.0e-3}}, {strategy: sequential}]\n"
    yield b"sweep: {vary: {seed: [1, 2], tasks.epochs: [1, 3], strategy: [gem, hft]}}\n"
    yield b"tasks: {only: [FOMC, Py150], epochs: &a {FOMC: 2}, prompt_tokens: *a}\nengine:\n"


_RECORDS = [dict(row) for row in mini.records()["FOMC"]["test"][:4]]
GOOD_RUN = (
    json.dumps(record(SEEDS[1], headline={"task0": "accuracy"}, initial=[1.5, 0])).encode(),
    b"strategy: mofo\nmofo: {update_fraction: 0.1}\noptimizer: {lr: 1.0e-05}\nseed: 1\n",
    json.dumps({"started": "2025-01-01", "versions": {"torch": "2"}, "finished": "x"}).encode(),
)
_STEPS = [{"task": "FOMC", "step": i, "loss": i / 3, "skipped": 0} for i in range(5)]

TARGETS: dict[str, Target] = {
    "recipes": Target(list(_recipes()), take_recipe),
    "json": Target(
        [
            json.dumps(_RECORDS, ensure_ascii=False, indent=1).encode(),
            b'[1, -2.5e3, true, null, "\\ud83d\\ude00\\n", {"a": [[]], "b": {}}, "\xc3\xa9"]',
        ],
        take_json,
    ),
    "data": Target(
        [json.dumps(_RECORDS).encode(), json.dumps(_RECORDS * 9, indent=2).encode()], take_data
    ),
    "runs": Target([bytes([i]) + content for i, content in enumerate(GOOD_RUN)], take_run),
    "checkpoints": Target(seeds(), take_checkpoint),
    "rows": Target([written_rows(_STEPS), written_rows(_STEPS[:1])], take_rows),
}
"""By name. What reads something else joins here."""


def case(target: str, seed: int, number: int) -> bytes:
    """Return a case, which its three numbers determine."""
    seeds = TARGETS[target].seeds
    random = Random(f"{target} {seed} {number}")
    if target in ("runs", "checkpoints"):  # what says which file it is stays
        chosen = random.choice(seeds)
        head = 1 if target == "runs" else chosen.index(b"\n") + 1
        return chosen[:head] + mutated(random, [chosen[head:]])
    return mutated(random, seeds)
