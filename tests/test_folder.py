"""Run folders: one run each, files whole or not at all."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from cl_mofo.errors import UserError
from cl_mofo.folder import RunFolder


def test_runs_that_start_together_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder(None, "mofo"), range(24)))
    assert len({folder.path for folder in folders}) == 24
    for folder in folders:
        folder.close()


def test_of_two_runs_given_one_folder_at_once_one_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "check", staticmethod(lambda path: None))  # both found it empty
    first = RunFolder(tmp_path / "run", "mofo")
    with pytest.raises(UserError, match="another process is running this run"):
        RunFolder(tmp_path / "run", "mofo")
    first.write_yaml("recipe.yaml", {})
    first.close()
    with pytest.raises(UserError, match="another run has just begun there"):
        RunFolder(tmp_path / "run", "mofo")


def test_a_run_that_was_killed_before_it_began_is_in_nobodys_way(tmp_path):
    RunFolder(tmp_path, "mofo").close()
    (tmp_path / "recipe.yaml.partial").write_text("mod")
    RunFolder(tmp_path, "mofo").close()


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "\udcff"])
def test_names_that_cannot_be_folders(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        RunFolder.check(f"{tmp_path}/{name}")


def test_files_are_replaced_whole(tmp_path):
    folder = RunFolder(tmp_path / "run", "mofo")
    folder.write_json("results.json", {"a": "ä"})
    with pytest.raises(ValueError, match="JSON"):
        folder.write_json("results.json", {"a": float("nan")})
    assert json.loads((folder.path / "results.json").read_text("utf-8")) == {"a": "ä"}
    assert [f.name for f in sorted(folder.path.iterdir())] == ["results.json", "run.log"]
    folder.close()
