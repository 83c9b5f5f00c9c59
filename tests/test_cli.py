"""The command line, as a user meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.forked import command, command_line, finish, start

SMALL = [
    "--set",
    "tasks.only=[FOMC, NumGLUE-cm]",
    "--set",
    "data.train_limit=8",
    "--set",
    "data.test_limit=4",
    "--set",
    "tasks.epochs=1",
]


def cl_mofo(*arguments, cwd, **env):
    """Run the command line."""
    return command(*arguments, cwd=cwd, **{"COLUMNS": "120", "TRACE_DIR": None} | env)


def refused(done, *parts):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs in `outputs/`, one of them named, the other by a fresh interpreter."""
    cwd = tmp_path_factory.mktemp("user")
    words = [sys.executable, "-m", "cl_mofo", "run", *SMALL]
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    first = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=os.environ | own)
    second = cl_mofo("run", *SMALL, "--strategy", "sequential", "--out", "outputs/two", cwd=cwd)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    return cwd, first.stdout, second.stdout


def test_a_run_shows_the_matrix_op_bwt_and_where_it_is(runs):
    cwd, first, second = runs
    assert "mofo on trace-mini (2 tasks) with tiny" in first
    assert "sequential on trace-mini" in second
    for part in ("NumGLUE-cm", "OP ", "BWT ", "results.json", "learned FOMC: 1 steps"):
        assert part in second
    (fresh,) = (f for f in (cwd / "outputs").iterdir() if f.name.endswith("-mofo"))
    assert json.loads((fresh / "results.json").read_text())["strategy"] == "mofo"


def test_report_in_every_form(runs):
    cwd, *_ = runs
    terminal = cl_mofo("report", "outputs", cwd=cwd)
    assert terminal.returncode == 0, terminal.stderr
    for part in ("sequential", "mofo", "divisor t-1"):
        assert part in terminal.stdout
    markdown = cl_mofo("report", "outputs", "--format", "markdown", "--paper", cwd=cwd)
    assert "| " in markdown.stdout
    assert "41.3" in markdown.stdout  # the paper's OP for MoFO
    csv = cl_mofo("report", "outputs", "--format", "csv", cwd=cwd)
    assert csv.stdout.splitlines()[0].startswith("strategy,")
    latex = cl_mofo("report", "outputs", "--format", "latex", cwd=cwd)
    assert r"\toprule" in latex.stdout


def test_report_draws(runs):
    cwd, *_ = runs
    done = cl_mofo("report", "outputs", "--figures", "pictures", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert {"curves.png", "matrix-two.png"} <= {f.name for f in (cwd / "pictures").iterdir()}


def test_a_name_is_given_once(runs):
    cwd, *_ = runs
    refused(cl_mofo("run", *SMALL, "--out", "outputs/two", cwd=cwd), "--resume")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "trace-mni"], ["did you mean 'trace-mini'"]),
        (["run", "--strategy", "moof"], ["did you mean 'mofo'"]),
        (["run", "--set", "mofo.fraction=1"], ["did you mean 'mofo.update_fraction'"]),
        (["run", "--set", "tasks.only=[FOMCC]"], ["did you mean 'FOMC'"]),
        (["run", "--set", "seed"], ["key=value"]),
        (["run", "--data", "nowhere"], ["no such folder"]),
        (["run", "--model", "./nowhere"], ["no such folder"]),
        (["run", "--model", "nobody/nothing"], ["--model PATH"]),
        (["run", "table2-mofo"], ["TRACE_DIR", "--set data.path=PATH"]),
        (["run", "--import", "gone.py"], ["no such file"]),
        (["report", "nowhere"], ["nowhere"]),
        (["report", ".", "--format", "pdf"], ["latex"]),
        (["check-data", "nowhere"], ["no such folder"]),
        (["list", "things"], ["strategies"]),
        (["run", "--no-such-option"], []),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(arguments, parts, tmp_path):
    refused(cl_mofo(*arguments, cwd=tmp_path), *parts)
    assert not (tmp_path / "outputs").exists()


def test_the_option_that_deepspeeds_launcher_adds_is_taken(tmp_path):
    done = cl_mofo("--local_rank=3", "list", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "table2" in done.stdout


def test_listings(tmp_path):
    strategies = cl_mofo("list", "strategies", cwd=tmp_path).stdout
    assert "mofo.update_fraction=0.05" in strategies
    assert "Sequential fine-tuning" in strategies
    tasks = cl_mofo("list", "tasks", cwd=tmp_path).stdout
    assert tasks.index("C-STANCE") < tasks.index("FOMC") < tasks.index("20Minuten")
    assert "trace-mini" in cl_mofo("list", "runs", cwd=tmp_path).stdout


def test_version_and_help(tmp_path):
    import cl_mofo as package

    assert cl_mofo("--version", cwd=tmp_path).stdout == f"cl-mofo {package.__version__}\n"
    assert "cl-mofo run --data TRACE" in cl_mofo("--help", cwd=tmp_path).stdout
    assert "--strategy" in cl_mofo("run", "--help", cwd=tmp_path).stdout


def test_a_fault_is_exit_code_1_with_its_traceback(tmp_path):
    (tmp_path / "bug.py").write_text(
        "from cl_mofo.strategy import Strategy\n"
        "class Bug(Strategy):\n"
        "    name = 'bug'\n"
        "    def before_step(self, loop):\n"
        "        raise ZeroDivisionError('mine')\n"
    )
    done = cl_mofo("run", *SMALL, "--import", "bug.py", "--strategy", "bug", cwd=tmp_path)
    assert done.returncode == 1
    assert "ZeroDivisionError: mine" in done.stderr
    assert "a fault in cl-mofo or in what you import" in done.stderr


def test_divergence_is_exit_code_1_without_a_traceback(tmp_path):
    wild = ["--set", "optimizer.lr=1e30", "--set", "optimizer.batch_size=2"]
    done = cl_mofo("run", *SMALL, *wild, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "not finite" in done.stderr


def test_an_interrupted_run_says_where_it_stands(tmp_path):
    told, errors = tmp_path / "told", tmp_path / "errors"
    words = ["run", "--out", "run", "--set", "tasks.epochs=500"]
    process = start(command_line, *words, told=told, errors=errors, cwd=tmp_path)
    log = tmp_path / "run" / "run.log"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and "learning" in log.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert finish(process, 60) == 130
    assert re.fullmatch(
        r"cl-mofo: interrupted after step \d+ of 4000 on C-STANCE; checkpoint \d+-00 is written. "
        r"To go on: cl-mofo resume run\n",
        errors.read_text(),
    )
    assert (tmp_path / "run" / "metrics.parquet").is_file()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["finished"] is False


def test_a_recipe_file_alone_runs_no_code(tmp_path):
    (tmp_path / "mine.py").write_text("print('ran')\n")
    (tmp_path / "recipe.yaml").write_text("imports: [mine.py]\n")
    done = cl_mofo("run", "recipe.yaml", cwd=tmp_path)
    refused(done, "--import mine.py")
    assert "ran" not in done.stdout


def test_check_data_on_trace(trace_500, tmp_path):
    done = cl_mofo("check-data", trace_500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NumGLUE-cm/train.json: 244 of 500 records repeat an earlier one" in done.stdout
    assert "MeetingBank/train.json: 80 records where most tasks have 500" in done.stdout
    assert "Lima/train.json: 1030 records" in done.stdout


def test_check_data_and_run_refuse_the_same_data(tmp_path):
    task = tmp_path / "data" / "FOMC"
    task.mkdir(parents=True)
    for split in ("train", "eval"):
        (task / f"{split}.json").write_text('[{"prompt": "a", "label": "b"}]')
    only = ["--set", "tasks.only=[FOMC]"]
    parts = ["3 problems", 'record 0 has no "answer"', "FOMC/test.json: the file is missing"]
    refused(cl_mofo("check-data", "data", *only, cwd=tmp_path), *parts)
    refused(cl_mofo("run", "--data", "data", *only, cwd=tmp_path), *parts)
