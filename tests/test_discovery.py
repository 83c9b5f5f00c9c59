"""Tasks and strategies are found: built in, installed by others, or in a user's file."""

import shutil
import subprocess
import sys

import pytest

from cl_mofo.discovery import registry
from cl_mofo.errors import UserError
from tests.conftest import ROOT

TASK_FILE = """
from cl_mofo.task import Task

def measure(predictions, references, sources):
    hits = [p == r for p, r in zip(predictions, references)]
    return {"accuracy": 100 * sum(hits) / len(hits)}

TASK = Task(
    name="Capitals", suite="mine", position=1, language="en", epochs=1, headline="accuracy",
    metrics=("accuracy",), prompt_tokens=32, answer_tokens=8, measure=measure,
    source="made up", sample={"prompt": "France?", "answer": "Paris"},
)
"""
STRATEGY_FILE = """
'''Do nothing, loudly.'''
from cl_mofo.strategy import Strategy

class Loud(Strategy):
    name = "loud"
"""


def test_builtins_are_found_in_trace_order():
    names = [task.name for task in registry().suite("trace")]
    assert names == [
        "C-STANCE",
        "FOMC",
        "MeetingBank",
        "Py150",
        "ScienceQA",
        "NumGLUE-cm",
        "NumGLUE-ds",
        "20Minuten",
    ]
    assert {"sequential", "mofo"} <= set(registry().strategies)


def test_a_users_file_adds_tasks_and_strategies(tmp_path):
    task, strategy = tmp_path / "capitals.py", tmp_path / "loud.py"
    task.write_text(TASK_FILE)
    strategy.write_text(STRATEGY_FILE)
    known = registry((task, strategy))
    assert known.task("Capitals").suite == "mine"
    assert known.strategy("loud").name == "loud"
    assert "Capitals" not in registry().tasks


def test_an_installed_package_adds_its_own(tmp_path):
    (tmp_path / "theirs.py").write_text(TASK_FILE)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cl_mofo.tasks]\ntheirs = theirs\n")
    code = "from cl_mofo.discovery import registry; print(registry().task('Capitals').name)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.stdout.strip() == "Capitals", done.stderr


def test_names_must_be_unique(tmp_path):
    file = tmp_path / "again.py"
    file.write_text(TASK_FILE.replace('"Capitals"', '"FOMC"'))
    with pytest.raises(UserError, match=r"two tasks are called 'FOMC'.*fomc\.py.*again\.py"):
        registry((file,))


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="did you mean 'mofo'"):
        registry().strategy("MOFO")
    with pytest.raises(UserError, match="did you mean 'C-STANCE'"):
        registry().task("cstance")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "no such file"),
        ("broken.py", "import nothing_of_that_name", "ModuleNotFoundError"),
        ("wrong.py", "1 +", "SyntaxError"),
        ("notes.txt", "x = 1", "must end in .py"),
        ("slash.py", TASK_FILE.replace("Capitals", "../Capitals"), "folder's name"),
        ("headline.py", TASK_FILE.replace('headline="accuracy"', 'headline="f1"'), "headline"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        registry((tmp_path / name,))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("name = 'optimizer'", "none of the recipe's own keys"),
        ("name = 'sweep'", "none of the recipe's own keys"),
        ("name = '../../escape'", "use small letters"),
        ("name = 'a+b'", "use small letters"),
        ("name = 'x'; phases = frozenset({'later'})", "give a set of model, data"),
        ("name = 'x'; phases = ('penalty',)", "give a set of model, data"),
        ("name = 'x'; phases = {'update', 'penalty'}", "one phase of a step"),
        ("name = 'x'\n    @dataclass(frozen=True)\n    class Config:\n        a: int", "default"),
        ("name = 'x'\n    class Config:\n        a: int = 1", "no dataclass"),
        ("name = 'x'\n    def __init__(self):\n        pass", "cannot be made of its Config"),
        ("name = 'x'\n    def on_gradients(self, loop):\n        pass", "not the phase penalty or"),
        (
            "name = 'x'\n    def make_optimizer(self, a, b):\n        pass",
            "not the phase optimizer",
        ),
    ],
)
def test_strategies_that_would_not_work_are_refused_by_file(tmp_path, line, message):
    file = tmp_path / "bad.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom cl_mofo.strategy import Strategy\n"
        f"class Bad(Strategy):\n    {line}\n"
    )
    with pytest.raises(UserError, match=message) as caught:
        registry((file,))
    assert "bad.py" in str(caught.value)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources, as a user would edit them."""
    for part in ("cl_mofo", "tasks", "strategies", "runs"):
        skip = shutil.ignore_patterns("__pycache__", "tiny")
        shutil.copytree(ROOT / part, tmp_path / part, ignore=skip)
    return tmp_path


def listing(checkout, what):
    return subprocess.run(
        [sys.executable, "-m", "cl_mofo", "list", what],
        capture_output=True,
        text=True,
        cwd=checkout,
        timeout=60,
    )


def test_a_new_file_needs_no_reinstall(checkout):
    (checkout / "strategies" / "loud.py").write_text(STRATEGY_FILE)
    (checkout / "tasks" / "capitals.py").write_text(TASK_FILE)
    assert "Do nothing, loudly." in listing(checkout, "strategies").stdout
    assert "Capitals" in listing(checkout, "tasks").stdout


def test_a_slip_in_a_file_is_the_users_to_mend(checkout):
    (checkout / "tasks" / "slip.py").write_text("1 +")
    done = listing(checkout, "tasks")
    assert done.returncode == 2
    assert "module cl_mofo.tasks.slip cannot be imported: SyntaxError" in done.stderr
