"""The package as it is installed: what importing costs, and that its parts are found anywhere."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cl_mofo
from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "avalanche", "datasets", "pandas", "matplotlib", "deepspeed")


def python(code: str, cwd: Path | None = None, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | env,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["cl_mofo", "cl_mofo.cli", "cl_mofo.recipes", "cl_mofo.report"])
def test_importing_loads_nothing_heavy(module):
    loaded = python(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded == "[]"


def test_no_module_hides_a_name():
    # A module that is imported becomes an attribute of its package, under its own name.
    modules = {module.name for module in pkgutil.iter_modules(cl_mofo.__path__)}
    assert len(modules) > 40
    assert not modules & {*cl_mofo.__all__}


def test_names_load_when_used():
    code = "import sys, cl_mofo; cl_mofo.{}; print('torch' in sys.modules)"
    assert python(code.format("score")) == "False"
    assert python(code.format("ResultMatrix")) == "False"
    assert python(code.format("MoFO")) == "True"


def test_unknown_name_is_an_attribute_error():
    import cl_mofo

    with pytest.raises(AttributeError, match="no attribute 'MoFi'"):
        _ = cl_mofo.MoFi
    assert "MoFO" in dir(cl_mofo)


LISTING = ["-m", "cl_mofo", "list", "tasks"]


@pytest.fixture(scope="session")
def wheel_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project built into a wheel, and that installed into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--target"]
    subprocess.run([*command, str(target), str(ROOT)], check=True, capture_output=True, timeout=300)
    return target


@pytest.mark.parametrize("where", ["root", "elsewhere"])
@pytest.mark.parametrize("how", ["editable", "wheel"])
def test_command_line_finds_its_parts(how, where, request, tmp_path):
    env = dict(os.environ)
    if how == "wheel":
        env["PYTHONPATH"] = str(request.getfixturevalue("wheel_site"))
    cwd = ROOT if where == "root" else tmp_path
    done = subprocess.run(
        [sys.executable, *LISTING], capture_output=True, text=True, cwd=cwd, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "20Minuten" in done.stdout


def test_wheel_holds_recipes_tasks_strategies_and_the_model(wheel_site, tmp_path):
    (tmp_path / "tasks.py").write_text("raise ImportError('a stranger')")
    code = (
        "import cl_mofo, cl_mofo.tasks, cl_mofo.mini, importlib.resources as r;"
        "print(cl_mofo.__file__);"
        "print(sorted(f.name for f in r.files('cl_mofo.runs').iterdir() if '.yaml' in f.name));"
        "print((cl_mofo.mini.tiny_path() / 'model.safetensors').is_file())"
    )
    file, runs, model = python(code, tmp_path, PYTHONPATH=str(wheel_site)).splitlines()
    assert Path(file).is_relative_to(wheel_site)
    assert "trace-mini.yaml" in runs
    assert model == "True"


def test_entry_point_of_the_console_script():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="cl-mofo")
    assert script.value == "cl_mofo.cli:main"
