"""Signals at a run's beginning and end, where there is no step or test set to wait for."""

import json
import re
import shlex
import signal

import pytest

import cl_mofo
from cl_mofo.cli import main
from cl_mofo.errors import StoppedError
from cl_mofo.folder import RunFolder
from cl_mofo.stopping import SIGNALS
from tests.soak import differences


@pytest.fixture
def arriving(monkeypatch):
    """Let a signal arrive when a file of the run's folder has been written for the nth time."""

    def at(name: str, time: int = 1) -> None:
        replace, seen = RunFolder._replace, []

        def replaced(folder, written, content):
            replace(folder, written, content)
            seen.append(written)
            if written == name and seen.count(name) == time:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(RunFolder, "_replace", replaced)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield at
    for number, handler in before.items():
        signal.signal(number, handler)


def test_as_soon_as_the_folder_holds_a_run_it_is_said_how_to_go_on(
    tmp_path, small_recipe, whole, arriving, monkeypatch, capsys
):
    arriving("recipe.yaml")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(json.dumps(small_recipe))
    monkeypatch.setattr("sys.argv", ["cl-mofo", "run", str(recipe), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 75
    told = capsys.readouterr().err.splitlines()[-1]  # after the libraries' bars
    how = rf"cl-mofo: stopped by SIGTERM .*\. To go on: cl-mofo resume {tmp_path}/run"
    assert re.fullmatch(how, told)
    monkeypatch.undo()
    cl_mofo.resume(tmp_path / "run")
    assert differences(whole, tmp_path / "run") == []


def test_the_command_that_is_told_goes_on(tmp_path, small_recipe, arriving, monkeypatch):
    file = tmp_path / "still.py"
    file.write_text(
        "from cl_mofo.strategy import Strategy\n"
        "class Still(Strategy):\n"
        "    name, phases = 'still', frozenset({'penalty'})\n"
    )
    mine = small_recipe | {"strategy": "still+mofo", "imports": [str(file)]}
    arriving("recipe.yaml")
    with pytest.raises(StoppedError) as stopped:
        cl_mofo.run(mine, out=tmp_path / "my run")
    monkeypatch.setattr("sys.argv", shlex.split(str(stopped.value).split("To go on: ")[1]))
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    assert json.loads((tmp_path / "my run" / "results.json").read_text())["finished"]


def test_a_run_that_is_done_is_not_called_stopped(tmp_path, small_recipe, whole, arriving):
    arriving("manifest.json", 2)  # that it is finished
    cl_mofo.run(small_recipe, out=tmp_path / "run")
    assert differences(whole, tmp_path / "run") == []
    assert not (tmp_path / "run" / "checkpoints").exists()
