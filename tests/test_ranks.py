"""A run on several ranks, as a user meets it: one voice, failures with an end, sweeps."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import cl_mofo
from cl_mofo.config import EngineConfig
from cl_mofo.engine.ranks import Ranks, join, launched, watching
from cl_mofo.engine.zero import import_deepspeed, local_rank_said
from cl_mofo.errors import LostRankError, TrainingError, UserError
from cl_mofo.observer import Observer
from cl_mofo.report import load_runs
from cl_mofo.sweep import run_sweep
from tests.forked import Process, command_line
from tests.ranks import ROOT, finish, free_port, on_ranks, start, variables

SMALL = {
    "data": {"suite": "trace-mini", "train_limit": 8, "test_limit": 4},
    "tasks": {"only": ["FOMC", "NumGLUE-cm"], "epochs": 1},
    "optimizer": {"batch_size": 4},
    "evaluation": {"losses": False, "initial": False},
    "save_model": False,
}
FAULT = '''
import os, signal, time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from cl_mofo.errors import UserError
from cl_mofo.strategy import Strategy

class Fault(Strategy):
    """What befalls one rank of a run."""

    name = "fault"

    @dataclass(frozen=True)
    class Config:
        what: str = "none"
        where: str = "step"
        rank: int = 1

    def befall(self, where):
        what, rank = self.config.what, int(os.environ["RANK"])
        if (where, rank) != (self.config.where, self.config.rank) or what == "none":
            return
        (Path(__file__).parent / "when").write_text(str(time.time()))
        if what == "bug":
            raise ZeroDivisionError("mine")
        if what == "mistake":
            raise UserError("no such folder")
        os.kill(os.getpid(), getattr(signal, what))

    def check_model(self, language_model):
        self.befall("model")

    def before_step(self, loop):
        if loop.global_step == 1:
            self.befall("step")

    @contextmanager
    def evaluating(self, model):
        self.befall("evaluation")
        yield
'''
LOST = "cl-mofo: another process of the run ended or stopped answering"


def command(folder: Path, *assignments: str) -> list[str]:
    """Return the command line of a small run below a folder, with what may befall it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fault.py").write_text(FAULT)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    words = ["run", str(folder / "small.yaml"), "--out", str(folder / "run")]
    words += ["--import", str(folder / "fault.py"), "--strategy", "mofo+fault"]
    for assignment in assignments:
        words += ["--set", assignment]
    return words


def begin(folder: Path, *assignments: str, **more: str) -> list[Process]:
    """Start that run on two ranks."""
    return start(command_line, command(folder, *assignments), 2, folder, **more)


def outputs(folder: Path, ranks: int = 2) -> list[str]:
    """Return what each rank has printed to standard error."""
    return [(folder / f"{rank}.err").read_text() for rank in range(ranks)]


def befallen(folder: Path, *assignments: str, others: float, **more: str) -> tuple[list[int], str]:
    """Let something befall rank 1, and rank 0 end in so many seconds; return codes and messages."""
    processes = begin(folder, *assignments, **more)
    try:
        first = processes[0].wait(200)
        took = time.time() - float((folder / "when").read_text())
    finally:
        processes[1].send_signal(signal.SIGCONT)
        codes = finish(processes, 30)
    print(f"{assignments}: the first ended {took:.1f} s later")
    assert took < others
    assert first == codes[0]
    return codes, "".join(outputs(folder))


def usable(folder: Path, reason: str) -> None:
    """Check that a stopped run's folder says so, and can be reported on."""
    log = (folder / "run.log").read_text()
    assert f"stopped: {reason}" in log
    (loaded,) = load_runs([folder])
    assert not loaded.finished
    assert "finished" not in json.loads((folder / "manifest.json").read_text())


# Without processes.


@pytest.fixture
def launcher(monkeypatch):
    """Set a launcher's variables, these and no others."""

    def given(**variables):
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(key, raising=False)
        for key, value in variables.items():
            monkeypatch.setenv(key, value)

    return given


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, "RANK=1 in the environment, but no WORLD_SIZE"),
        ({"RANK": "0"}, "RANK=0 in the environment, but no WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment, but no RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "do not go together"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "whole numbers"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    ],
)
def test_a_launchers_variables_go_together(launcher, variables, message):
    launcher(**variables)
    with pytest.raises(UserError, match=message) as caught:
        launched()
    assert "unset them all" in str(caught.value)


def test_without_a_launcher_there_is_one_process(launcher):
    launcher()
    assert launched() == join(EngineConfig()) == Ranks(0, 1)
    launcher(WORLD_SIZE="1")
    assert launched() == Ranks(0, 1)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("torch", {}, "'torch' computes on one device, and 2 processes were started"),
        ("fsdp", {"MASTER_PORT": "29500"}, "MASTER_ADDR= and MASTER_PORT=29500 .* torchrun"),
        ("fsdp", {"MASTER_ADDR": "localhost", "MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
    ],
)
def test_processes_that_cannot_meet_say_why(launcher, kind, more, message):
    launcher(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", **more)
    with pytest.raises(UserError, match=message):
        join(EngineConfig(kind=kind))


def test_a_process_without_a_gpu_of_its_own_is_refused(launcher, monkeypatch):
    from cl_mofo.engine import ranks

    launcher(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1")
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks._accelerator() == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"process 1 of its machine.* has no GPU: there are 1"):
        ranks._accelerator()
    assert taken == [1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("No module named 'deepspeed'"), "pip install deepspeed.*engine.kind=fsdp"),
        (OSError("CUDA_HOME does not exist\nmore"), r"not start \(CUDA_HOME does not exist\)"),
    ],
)
def test_deepspeed_that_cannot_be_imported_says_what_to_do(monkeypatch, error, message):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise error

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "deepspeed":
                raise error

    for name in [n for n in sys.modules if n.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    before = dict(os.environ)
    with pytest.raises(UserError, match=message):
        import_deepspeed(on_cpu=True)
    assert dict(os.environ) == before


def test_a_local_rank_is_said_to_deepspeed_alone(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with local_rank_said():
        assert os.environ["LOCAL_RANK"] == "0"
    assert "LOCAL_RANK" not in os.environ
    monkeypatch.setenv("LOCAL_RANK", "3")
    with local_rank_said():
        assert os.environ["LOCAL_RANK"] == "3"
    assert os.environ["LOCAL_RANK"] == "3"


@pytest.mark.parametrize(
    ("told", "lost"),
    [
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 9ms for recv", True),
        ("[gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4", False),
        ("CUDA out of memory", False),
    ],
)
def test_the_end_of_another_process_is_told_from_a_fault_of_this_one(monkeypatch, told, lost):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(LostRankError if lost else RuntimeError) as caught, watching():
        raise RuntimeError(told)
    assert (LOST.removeprefix("cl-mofo: ") in str(caught.value)) is lost


@pytest.mark.parametrize(
    ("variables", "arguments", "told"),
    [
        ({}, "2, alike=True", "said\n"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "2, alike=True", "said\n"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "2, alike=True", ""),
        # The first process of a second machine, which finds what the first machine may not.
        ({"RANK": "8", "WORLD_SIZE": "16", "LOCAL_RANK": "0"}, "2, alike=True", "said\n"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "2", "rank 1: said\n"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "2, named=True", "rank 0: said\n"),
        ({"RANK": "1"}, "2, alike=True", "said\n"),
    ],
)
def test_who_says_why_before_the_processes_have_met(launcher, variables, arguments, told):
    launcher(**variables)
    said = "lambda name: print(name + 'said', file=sys.stderr)"
    code = (
        f"import sys\nfrom cl_mofo import ending\nending.prepare()\nending.end({said}, {arguments})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_a_command_that_several_processes_do_not_share_is_not_silent(launcher):
    launcher(RANK="1", WORLD_SIZE="2")
    command = [sys.executable, "-m", "cl_mofo", "list"]
    shown, refused = (
        subprocess.run([*command, what], cwd=ROOT, capture_output=True, text=True)
        for what in ("runs", "nothing")
    )
    assert "table2" in shown.stdout
    assert (refused.returncode, refused.stderr.count("list nothing: choose")) == (2, 1)


# With processes.


def test_a_good_run_speaks_with_one_voice(tmp_path):
    """Two engines in one command: FSDP2 and ZeRO 3, which needs a good end most."""
    zero = {"kind": "deepspeed", "zero_stage": 3}
    rows = [{"engine": {"kind": "fsdp"}}, {"engine": zero, "seed": 7}]
    words = ["-m", "cl_mofo", *command(tmp_path, f"sweep.rows={json.dumps(rows)}")]
    processes = []
    for rank, own in enumerate(variables(2)):  # by fresh interpreters: libraries speak when loaded
        out, err = (tmp_path.joinpath(f"{rank}.{kind}").open("w") for kind in ("out", "err"))
        with out, err:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *words], cwd=ROOT, env=os.environ | own, stdout=out, stderr=err
                )
            )
    assert finish(processes, 200) == [0, 0], outputs(tmp_path)
    assert outputs(tmp_path) == ["", ""]
    assert (tmp_path / "1.out").read_text() == ""
    told = (tmp_path / "0.out").read_text()
    for part in ("run 1 of 2", "run 2 of 2", "learned FOMC: 2 steps", "cl-mofo report"):
        assert told.count(part) >= 1
    for chatter in ("[INFO]", "[WARNING]", "WARN", "Gloo", "c10d", "<class", "None"):
        assert chatter not in told
    runs = [json.loads(f.read_text()) for f in (tmp_path / "run").glob("*/manifest.json")]
    assert [run["ranks"] for run in runs] == [2, 2]
    assert all("finished" in run for run in runs)
    recipes = [yaml.safe_load(f.read_text()) for f in (tmp_path / "run").glob("*/recipe.yaml")]
    assert {r["engine"]["kind"] for r in recipes} == {"fsdp", "deepspeed"}


class Heard(Observer):
    """Note what a sweep tells, as (number, skipped or not)."""

    def __init__(self):
        self.told = []

    def next_run(self, number, total, recipe, folder, skipped):
        self.told.append((number, skipped))


def sweeps(folder: Path) -> dict[str, object]:
    """Run a sweep in which a run diverges, another, each twice, and single runs: in one process."""
    rows = [
        {"optimizer": {"lr": 1e30}, "engine": {"kind": "deepspeed", "zero_stage": 3}},
        {"engine": {"kind": "fsdp"}, "seed": 1},
        {"engine": {"kind": "deepspeed", "zero_stage": 1}, "seed": 2},
    ]
    told, heard = [], []
    for _ in range(2):
        observer = Heard()
        try:
            run_sweep(SMALL | {"sweep": {"rows": rows[:2]}}, out=folder / "a", observer=observer)
        except TrainingError as error:
            told.append(str(error))
        heard.append(observer.told)
    second = SMALL | {"sweep": {"rows": rows[2:]}}
    done = [run_sweep(second, out=folder / "b") for _ in range(2)]
    runs = [cl_mofo.run(SMALL | row, out=folder / f"c{n}") for n, row in enumerate(rows[1:])]
    return {"told": told, "heard": heard, "done": done, "runs": runs}


def test_a_sweep_on_two_ranks_and_several_runs_in_one_process(tmp_path):
    first, second = on_ranks("tests.test_ranks:sweeps", 2, tmp_path)
    assert second == first | {"heard": [[], []]}
    assert first["told"][0] == first["told"][1]
    assert first["told"][0].startswith("1 of 2 runs failed")
    assert "not finite" in first["told"][0]
    assert first["heard"] == [
        [[1, None], [2, None]],
        [[1, "it diverged"], [2, "already finished"]],
    ]
    (made,), (kept,) = first["done"]
    assert made == kept
    (fsdp,) = (json.loads(f.read_text()) for f in (tmp_path / "a").glob("*-2/results.json"))
    for run, swept in zip(first["runs"], [fsdp, made], strict=True):
        for key in ("scores", "metrics", "distance"):  # the same bits, whatever was run before
            assert run[key] == swept[key]
        assert run["finished"]


def test_what_one_rank_finds_is_said_once_with_its_number(tmp_path):
    mistake = ("engine.kind=fsdp", "fault.what=mistake", "fault.where=model")
    assert finish(begin(tmp_path, *mistake), 100) == [2, 2]
    assert outputs(tmp_path) == ["cl-mofo: rank 1: no such folder\n", ""]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "where"),
    [("fsdp", "step"), pytest.param("deepspeed", "evaluation", marks=pytest.mark.slow)],
)
def test_a_rank_that_is_killed_ends_the_others(tmp_path, kind, where):
    settings = (f"engine.kind={kind}", "fault.what=SIGKILL", f"fault.where={where}")
    codes, told = befallen(tmp_path, *settings, others=30)
    assert codes == [1, -signal.SIGKILL]
    assert told.startswith(LOST)
    assert told.count("\n") == 1
    usable(tmp_path / "run", "LostRankError: another process")


@pytest.mark.slow
def test_an_exception_on_one_rank_ends_all(tmp_path):
    codes, _ = befallen(tmp_path, "engine.kind=fsdp", "fault.what=bug", others=30)
    assert codes == [1, 1]
    first, second = outputs(tmp_path)
    assert first == ""
    assert "ZeroDivisionError: mine" in second
    assert second.endswith(
        "\ncl-mofo: rank 1: a fault in cl-mofo or in what you import; the traceback above says "
        "where\n"
    )
    usable(tmp_path / "run", "LostRankError: another process")


@pytest.mark.parametrize(
    ("number", "ranks", "told", "code"),
    [(signal.SIGINT, [0, 1], "interrupted", 130), (signal.SIGTERM, [1], "stopped by SIGTERM", 75)],
)
def test_a_signal_lets_all_ranks_save_and_leave(tmp_path, number, ranks, told, code):
    processes = begin(tmp_path, "engine.kind=fsdp", "tasks.epochs=500")
    log = tmp_path / "run" / "run.log"
    until = time.monotonic() + 100
    while time.monotonic() < until and not (log.is_file() and "learning" in log.read_text()):
        time.sleep(0.2)
    for rank in ranks:
        processes[rank].send_signal(number)
    assert finish(processes, 30) == [code, code]
    first, second = outputs(tmp_path)
    assert re.fullmatch(
        rf"cl-mofo: {told} after step \d+ of 1000 on FOMC; checkpoint \d+-00 is written. "
        rf"To go on: cl-mofo resume {tmp_path}/run --import {tmp_path}/fault\.py\n",
        first,
    )
    assert second == ""
    usable(tmp_path / "run", "KeyboardInterrupt: " if code == 130 else "StoppedError: ")


@pytest.mark.slow
def test_a_rank_that_stops_answering_ends_the_others(tmp_path):
    # DeepSpeed makes process groups of its own, which know no timeout but torch's.
    settings = ("engine.kind=deepspeed", "engine.timeout_minutes=0.2", "fault.what=SIGSTOP")
    codes, told = befallen(tmp_path, *settings, others=12 + 20)
    assert codes[0] == 1
    assert told.startswith(LOST)
    usable(tmp_path / "run", "LostRankError: another process")


@pytest.mark.slow
def test_a_port_in_use_is_said(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))
        other.listen()
        port = str(other.getsockname()[1])
        settings = ("engine.kind=fsdp", "engine.timeout_minutes=0.05")
        codes = finish(begin(tmp_path, *settings, MASTER_PORT=port), 100)
    assert codes == [2, 1]
    first, second = outputs(tmp_path)
    assert f"port {port} is in use by another program or run; give another" in first
    assert first.count("\n") == 1
    assert second.startswith(
        f"cl-mofo: rank 1: the 2 processes of the run cannot meet: is 127.0.0.1:{port}"
    )
    assert second.count("\n") == 1


@pytest.mark.slow
def test_under_torchrun_the_reason_is_said_once(tmp_path):
    """A launcher ends the others itself, as soon as it sees one end."""
    words = ["-m", "cl_mofo", *command(tmp_path, "engine.kind=fsdp", "fault.what=SIGKILL")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, *words],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("cl-mofo: ")]
    assert len(said) == 1, done.stderr
    usable(tmp_path / "run", "LostRankError: ")
