"""What others may have written: it is shown as text, forms no path, and leaves no secret behind."""

import csv
import io
import json
import os
import re
import shutil

import pytest
from rich.console import Console as RichConsole
from safetensors.torch import load_file

import cl_mofo
from cl_mofo import mini
from cl_mofo.claim import manifest_of, state
from cl_mofo.config import ModelConfig, Recipe
from cl_mofo.console import Console
from cl_mofo.errors import UserError
from cl_mofo.mappings import parsed
from cl_mofo.model import load_model
from cl_mofo.observer import Observer
from cl_mofo.recipes import override, read_recipe, to_mapping
from cl_mofo.report import comparison_table, draw, load_results, load_runs, matrix_table, render
from cl_mofo.report.text import escape_markdown
from cl_mofo.resolve import resolve
from cl_mofo.untrusted import distinct, printable, read_bytes, shortened
from tests.forked import command
from tests.report_runs import SEEDS, make, record, trace_run, write

ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
NASTY = "a\x1b[2J\x9b31m\rb\x7f\u202ec\u2066\x00"


def test_what_a_terminal_acts_on_becomes_an_escape():
    assert printable(NASTY) == r"a\x1b[2J\x9b31m\rb\x7f\u202ec\u2066\x00"
    assert printable("\udcff\t") == r"\udcff\t"
    kept = "grün 立场 \u3000 👍 е́\n[bold] $x$ \\x1b"
    assert printable(kept) == kept
    assert shortened("a\nb" + "x" * 10**6) == r"a\nb" + "x" * 75 + "…"


def refused(*arguments, cwd, **env):
    done = command(*arguments, cwd=cwd, **env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_error_that_quotes_a_file_does_not_speak_to_the_terminal(tmp_path):
    for split in ("train", "eval", "test"):
        (tmp_path / "FOMC").mkdir(exist_ok=True)
        (tmp_path / "FOMC" / f"{split}.json").write_text(json.dumps([{NASTY: "x" * 10**6}]))
    text = refused(
        "run", "--data", tmp_path, "--set", "tasks.only=[FOMC]", "--model", "tiny", cwd=tmp_path
    )
    assert not ACTING.search(text)
    assert r"\x1b[2J" in text
    assert len(text) < 2000


def test_a_run_folder_does_not_speak_to_the_terminal(tmp_path):
    folder = tmp_path / "a\x1b[2J\nb"
    run = trace_run(folder, learned=3)
    shutil.copytree(folder, tmp_path / "x" / folder.name)  # so that the whole path is told
    runs = [run, load_results(tmp_path / "x" / folder.name)]
    for form in ("terminal", "markdown", "latex", "csv"):
        text = render(runs, form)
        assert not ACTING.search(text)
        assert "x1b" in text
    (folder / "results.json").write_text('{"schema": 1}')
    assert not ACTING.search(refused("report", folder, cwd=tmp_path))


def test_what_a_run_shows_is_no_markup_and_no_control():
    shown = Console(RichConsole(file=io.StringIO(), width=200))
    recipe = Recipe(model=ModelConfig(path=f"[link=https://x]m{NASTY}[/]"))
    shown.loading(recipe)
    shown.started(recipe, [], f"[red]f{NASTY}")  # type: ignore[arg-type]
    shown.failed(UserError(NASTY))
    text = shown.console.file.getvalue()
    assert not ACTING.search(text)
    assert text.count("[link=https://x]m") == 2
    assert "[red]f" in text


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", " =1", "＝1"])
def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers(tmp_path, name):
    run = make(tmp_path / "run", SEEDS[1], strategy=name, suite=name, model=name, tasks=[name, "b"])
    head, row = csv.reader(io.StringIO(render([run], "csv")))
    assert f"'{name}" in head
    assert all(text.lstrip()[:1] not in "=+-@＝" or text == "" for text in head)
    cells = dict(zip(head, row, strict=True))
    assert [cells[key] for key in ("strategy", "suite", "model")] == [f"'{name}"] * 3
    assert cells["tasks"] == f"'{name} > b"
    assert float(cells["BWT"]) == -20.0
    assert (cells["n"], cells["seeds"], cells["finished"]) == ("1", "1", "True")


def test_markdown_makes_no_link_of_an_address_or_a_name():
    assert escape_markdown("https://x.y www.x.y @me 1.5") == r"https:\//x.y www\.x.y \@me 1.5"


def test_latex_reads_no_file_and_defines_nothing(tmp_path):
    run = make(tmp_path / "run", SEEDS[1], strategy=r"\input{/etc/passwd}", tasks=["^^M", r"\x"])
    text = render([run], "latex")
    commands = set(re.findall(r"\\[a-zA-Z]+", text))
    known = {"begin", "end", "centering", "toprule", "midrule", "bottomrule", "par", "smallskip"}
    known |= {"textwidth", "footnotesize", "textbackslash", "textasciicircum", "textperiodcentered"}
    known |= {"pm", "le", "usepackage"}
    assert commands == {f"\\{name}" for name in known}
    assert "^^" not in text


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "CON", "a" * 400, "x\\..\\y"])
def test_names_in_results_form_no_path(tmp_path, name):
    runs = tmp_path / "runs"
    make(runs / "one", SEEDS[1], strategy=name, tasks=[name, "b"], suite=name, model=name)
    names = draw(load_runs([runs]), tmp_path / "figures")
    assert names == ["matrix-one.png", "curves.png"]
    made = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert made == {"runs/one/results.json", *(f"figures/{name}" for name in names)}


def test_figures_of_folders_with_odd_names_stay_apart_and_in_their_folder(tmp_path):
    odd = ["a", "A", "b/a", "c/a-2", "d/a", "立" * 80, "e/" + "立" * 80, "x:y\\z\x1b"]
    runs = [make(tmp_path / "runs" / name, SEEDS[1]) for name in odd]
    names = draw(runs, tmp_path / "figures")
    assert len({name.lower() for name in names}) == len(odd) + 1
    assert sorted(names) == sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert all(not re.search(r"[\x00-\x1f/\\:]", name) for name in names)


def test_a_pipe_or_an_endless_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UserError, match=r"results\.json: cannot be read \(a pipe or a device"):
        load_results(tmp_path)
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read: .*a pipe or a device"):
        manifest_of(tmp_path)
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"cannot be read: .*a pipe or a device"):
        state(tmp_path, resolve({}))
    with pytest.raises(OSError, match="a pipe or a device"):
        read_bytes("/dev/zero", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="larger than"):
        read_bytes(tmp_path / "large", 10)
    assert read_bytes(tmp_path / "large", 11) == b"x" * 11
    for split in ("train", "eval", "test"):
        (tmp_path / "FOMC").mkdir(exist_ok=True)
        os.mkfifo(tmp_path / "FOMC" / f"{split}.json")
    with pytest.raises(UserError, match=r"FOMC/test\.json: cannot be read: a pipe or a device"):
        cl_mofo.data.read_folder(tmp_path, ["FOMC"])


def test_an_object_says_one_thing():
    assert json.loads('{"a": 1, "b": {"a": 2}}', object_pairs_hook=distinct)["b"] == {"a": 2}
    with pytest.raises(ValueError, match="'a' is given twice"):
        json.loads('{"b": {"a": 1, "a": 1}}', object_pairs_hook=distinct)


def test_results_that_say_two_things_are_refused(tmp_path):
    text = json.dumps(record(SEEDS[1]))
    write(tmp_path / "run", {})
    (tmp_path / "run" / "results.json").write_text(text[:-1] + ', "seed": 2}')
    with pytest.raises(UserError, match="'seed' is given twice"):
        load_results(tmp_path / "run")


BOMB = "\n".join(
    ["a: &l0 [x, x, x, x, x, x, x, x, x]"]
    + [f"b{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 20)]
)
YAML = {
    BOMB: "more than 25000 values",
    "a: &a [*a]": "contains itself",
    "a: &a {b: *a}": "contains itself",
    "a: &a {x: 1}\nb: {<<: *a}": "kind 'merge'",
    "a: " + "[" * 60 + "]" * 60: "nested deeper than 50",
    "[" * 10_000: "nested deeper than 50",
    "- " * 10_000: "nested too deep",
    "seed: " + "9" * 5000: "a number of 5000 digits",
    "seed: 0x" + "f" * 40: "more than 64 bits",
    "seed: 1" + ":1" * 30: "more than 64 bits",
    "seed: 2020-01-01": "the kind 'timestamp'",
    "strategy: !!binary bW9mbw==": "the kind 'binary'",
    "tasks: !!set {a}": "the kind 'set'",
    "? [a]\n: b": "unhashable key",
    'strategy: "\\e[2J"': r"'\x1b[2J' has characters that cannot be printed",
    'data: {path: "\\u202e"}': r"\u202e",
    "#" * 300_000: "at most 262144",
    "a: 1\x00": "special characters are not allowed",
}


@pytest.mark.parametrize("text", YAML, ids=YAML.values())
def test_yaml_that_is_no_recipe_is_one_message_for_a_recipe_and_a_run(tmp_path, text):
    with pytest.raises(UserError) as refusal:
        parsed(text, "recipe x")
    assert str(refusal.value).startswith("recipe x: ")
    assert YAML[text] in str(refusal.value)
    with pytest.raises(UserError, match=r"recipe\.yaml: "):
        make(tmp_path / "run", SEEDS[1], recipe=text)


def test_aliases_and_all_plain_values_are_taken():
    text = "a: &x {b: [1, 1e-5, .5, true, null, ~, 'x: y', 0x1F]}\nc: *x"
    inner = {"b": [1, 1e-5, 0.5, True, None, None, "x: y", 31]}
    assert parsed(text, "x") == {"a": inner, "c": inner}
    assert parsed("", "x") is None


@pytest.mark.parametrize("content", [b"seed: \xff", "seed: 1".encode("utf-16"), b"a: [" * 10**6])
def test_a_recipe_file_that_is_no_text_is_named(tmp_path, content):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"recipe .*r\.yaml: "):
        read_recipe(str(tmp_path / "r.yaml"))


def test_thousands_of_mistakes_are_told_in_few_words():
    raw = {f"key{i}": 1 for i in range(5000)} | {"tasks": {"only": [f"t{i}" for i in range(5000)]}}
    raw |= {"optimizer": {f"k{i}": 1 for i in range(5000)}, "mofo": {"x" * 10**6: 1}}
    with pytest.raises(UserError, match="and more like these") as refusal:
        resolve(raw)
    assert len(str(refusal.value).splitlines()) == 51
    assert len(str(refusal.value)) < 60_000


SECRET = "s3cr3t-t0ken"


class Stop(Observer):
    """Stops a run after its first task."""

    def measured(self, results):
        raise KeyboardInterrupt


def test_no_value_of_the_environment_lands_in_a_run_folder(tmp_path, monkeypatch):
    """The folders of data and model are named by variables; their values are in no file."""
    place = tmp_path / SECRET
    shutil.copytree(mini.tiny_path(), place / "model")
    for task in ("FOMC", "Py150"):
        (place / "data" / task).mkdir(parents=True)
        for split, rows in mini.records()[task].items():
            (place / "data" / task / f"{split}.json").write_text(json.dumps(rows[:4]))
    monkeypatch.setenv("MY_PLACE", str(place))
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET}")
    recipe = override(
        read_recipe("trace-mini"),
        [
            "data={suite: trace, path: $MY_PLACE/data}",
            "model.path=$MY_PLACE/model",
            "strategy=lora+mofo",
            "tasks={only: [FOMC, Py150], epochs: 1, answer_tokens: 4}",
        ],
    )
    with pytest.raises(KeyboardInterrupt):
        cl_mofo.run(recipe, out=tmp_path / "stopped", observer=Stop())
    files = [file for file in (tmp_path / "stopped").rglob("*") if file.is_file()]
    assert any(file.is_relative_to(tmp_path / "stopped" / "checkpoints") for file in files)
    assert [str(f) for f in files if SECRET.encode() in f.read_bytes()] == []
    folder = tmp_path / "run"
    cl_mofo.run(recipe, out=folder)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"recipe.yaml", "manifest.json", "run.log", "results.json", "config.json"} <= {
        file.name for file in files
    }
    assert [str(f.relative_to(folder)) for f in files if SECRET.encode() in f.read_bytes()] == []
    kept = read_recipe(str(folder / "recipe.yaml"))
    assert (kept["data"]["path"], kept["model"]["path"]) == ("$MY_PLACE/data", "$MY_PLACE/model")
    assert to_mapping(resolve(kept)) == kept
    assert set(json.loads((folder / "manifest.json").read_text())) <= MANIFEST
    assert matrix_table(load_results(folder))
    assert comparison_table(load_runs([folder]))


MANIFEST = {
    *("started", "finished", "versions", "commit", "model", "data", "hardware", "ranks", "command"),
    *("resumed", "diverged"),
}
"""All that may be recorded of where a run was made; a new key is a decision."""


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{root}/outside.safetensors", "a\\..\\b"]
)
def test_a_checkpoint_names_no_file_outside_of_it(tmp_path, name):
    shutil.copytree(mini.tiny_path(), tmp_path / "model")
    whole = tmp_path / "model" / "model.safetensors"
    names = list(load_file(whole))
    shutil.move(whole, tmp_path / "outside.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    parts = dict.fromkeys(names, name.format(root=tmp_path))
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    config = ModelConfig(path=str(tmp_path / "model"), device="cpu")
    with pytest.raises(UserError, match="which is no file of the checkpoint"):
        load_model(config)
    shutil.move(tmp_path / "outside.safetensors", tmp_path / "model" / "part-1.safetensors")
    parts = dict.fromkeys(names, "part-1.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    assert len(load_model(config).module.state_dict()) >= len(names)
    index.write_text("{")
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        load_model(config)
