"""The report as text: layout, figures in their places, and names that try to be markup."""

import csv
import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from cl_mofo.errors import UserError
from cl_mofo.report import (
    CONVENTION,
    FORMATS,
    comparison_table,
    matrix_markdown,
    matrix_table,
    render,
    summarise,
)
from cl_mofo.report.text import break_name, escape_latex, escape_markdown, number
from tests.report_runs import SEEDS, TRACE, make, three_seeds, trace_run

ODD = r"a|b_[bold]x[/] $y$ \z{*} 100%&<i>"


def shown(renderable, width=120):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def joined(text):
    return " ".join(text.split())


def test_the_terminal_table_shows_means_deviations_and_the_convention(tmp_path):
    text = shown(comparison_table(three_seeds(tmp_path)))
    (mean,) = re.findall(r"^mofo +3 .*$", text, re.M)
    assert mean.split() == ["mofo", "3", "75.0", "-18.0", "84.0", "62.0", "88.0"]
    assert "±5.0 ±13.1 ±1.7 ±3.5 ±7.2" in joined(text)
    assert "trace-mini · tiny" in text
    assert CONVENTION in joined(text)


def test_two_strategies_stand_below_each_other(tmp_path):
    runs = [make(tmp_path / s, SEEDS[i], strategy=s) for i, s in ((1, "sequential"), (2, "mofo"))]
    text = shown(comparison_table(runs))
    assert re.search(r"^sequential +1 +75.0 +-20.0 +85.0 +60.0 +90.0", text, re.M)
    assert re.search(r"^mofo +1 +80.0 +-4.0 +82.0 +66.0 +94.0", text, re.M)
    assert "±" not in text.split("OP_t")[0]


@pytest.mark.parametrize("width", [72, 80, 100, 120])
def test_eight_tasks_keep_every_figure_whatever_the_width(tmp_path, width):
    runs = [trace_run(tmp_path / s, strategy=s, seed=1) for s in ("sequential", "replay+mofo")]
    tables = [shown(comparison_table(runs, paper=True), width), shown(matrix_table(runs[0]), width)]
    for text in tables:
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
    for score in ("67.5", "70.5", "73.5", "76.5", "79.5", "82.5", "85.5", "88.5"):
        assert tables[0].count(score) >= 2  # the last row of each strategy
    assert re.search(r"(8 20Minuten|^8) +67.5 .* 88.5 +78.0 +-12.0", tables[1], re.M)


def test_eight_tasks_stand_in_one_table_where_there_is_room(tmp_path):
    text = shown(comparison_table([trace_run(tmp_path / "run")]), 100)
    assert re.search(r"^mofo +1 +78.0 +-12.0 +88.5 +67.5 .* 88.5", text, re.M)


def test_an_unfinished_run_says_how_far_it_came(tmp_path):
    runs = [trace_run(tmp_path / "stopped", learned=3)]
    assert "mofo (stopped) unfinished: 3 of 8 tasks | 1 | 85.5" in render(runs)
    text = shown(comparison_table(runs))
    assert "(stopped)" in text
    assert "3 of 8 tasks" in text


def test_the_papers_table_stands_beside_ours(tmp_path):
    text = render(three_seeds(tmp_path), paper=True)
    row = "| mofo | 3 | 75.0 ± 5.0 | -18.0 ± 13.1 | 84.0 ± 1.7 | 41.3 | -5.4 | 62.0 ± 3.5 |"
    assert row in text
    assert "| ewc+mofo | – | – | – | – | 43.2 | -4.4 | – | – |" in text
    assert "paper OP" not in render(three_seeds(tmp_path / "again"))


def test_the_markdown_table_is_rectangular_and_the_notes_stand_below(tmp_path):
    lines = render([trace_run(tmp_path / "run")]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {5 + 8 + 1}
    assert table[0].endswith("| NumGLUE-ds | 20Minuten |")
    assert f"{CONVENTION}." in lines[lines.index(table[-1]) :]


def test_the_csv_is_figures_alone(tmp_path):
    runs = [*three_seeds(tmp_path), make(tmp_path / "one", SEEDS[1], strategy='h,f"t')]
    rows = list(csv.DictReader(io.StringIO(render(runs, "csv", paper=True))))
    assert [row["strategy"] for row in rows][:2] == ["mofo", 'h,f"t']
    assert (float(rows[0]["OP"]), float(rows[0]["OP_std"])) == (75, 5)
    assert (rows[0]["BWT_std"], rows[1]["BWT_std"]) == ("13.1149", "")
    assert (rows[0]["paper_OP"], rows[1]["paper_OP"]) == ("41.3000", "")
    assert all(None not in row and None not in row.values() for row in rows)


def test_the_latex_is_balanced_and_every_row_has_every_column(tmp_path):
    runs = [*three_seeds(tmp_path), make(tmp_path / "x", SEEDS[1], strategy=ODD)]
    text = render(runs, "latex", paper=True)
    for name in ("table", "adjustbox", "tabular", "minipage"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    rows = re.findall(r"^(.*) \\\\$", text, re.M)
    assert len(rows) == 1 + 2 + 8  # the head, ours, and the paper's that are not ours
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {8}
    assert r"\begin{tabular}{lrrrrrrrr}" in text
    assert r"mofo & 3 & $75.0 \pm 5.0$ & $-18.0 \pm 13.1$" in text
    assert "divisor $t-1$, signed" in text


def test_each_setting_has_a_table_of_its_own(tmp_path):
    runs = [make(tmp_path / "a", SEEDS[1]), make(tmp_path / "b", SEEDS[2], model="SmolLM2")]
    assert render(runs, "latex").count(r"\begin{tabular}") == 2
    assert render(runs, "markdown").count("| --- |") == 2
    text = shown(comparison_table(runs))
    assert "trace-mini · SmolLM2" in text
    assert text.count("OP_t") == 1


def test_names_are_shown_as_they_are_written(tmp_path):
    run = make(
        tmp_path / "run", SEEDS[1], strategy=ODD, tasks=["t|1", "[red]t2[/red]"],
        headline={"t|1": "[b]acc"},
    )  # fmt: skip
    for text in (shown(comparison_table([run])), shown(matrix_table(run))):
        assert ODD in text
        assert "t|1" in text
        assert "[red]" in text
    assert "[b]acc: t|1" in shown(matrix_table(run))
    for text in (render([run]), matrix_markdown(run)):
        assert r"a\|b\_\[bold\]x\[/\] \$y\$ \\z\{\*\} 100%\&\<i\>" in text
        assert r"| t\|1 | \[red\]t2\[/red\] |" in text
    latex = r"a\textbar{}b\_{[}bold{]}x{[}/{]} \$y\$ \textbackslash{}z\{{*}\} 100\%\&\textless{}i"
    assert latex in render([run], "latex")


def test_the_matrix_of_a_run_under_way_has_its_measured_rows(tmp_path):
    run = trace_run(tmp_path / "run", learned=2, initial=[1.5] * 8)
    text = shown(matrix_table(run), 100)
    assert "2 of 8 tasks learned" in text
    assert re.search(r"^nothing +1.5 +1.5 ", text, re.M)
    assert re.search(r"^1 C-STANCE +88.5( +–){7} +88.5 +–", text, re.M)
    assert re.search(r"^2 FOMC +85.5 +88.5( +–){6} +87.0 +-3.0", text, re.M)
    assert "3 MeetingBank" not in text
    assert "divisor t-1, signed" in joined(text)


def test_the_matrix_in_markdown_has_the_same_rows(tmp_path):
    headline = dict.fromkeys(TRACE, "accuracy") | {"20Minuten": "sari"}
    text = matrix_markdown(trace_run(tmp_path / "run", headline=headline))
    assert "| 1 C-STANCE | 88.5 | – | – | – | – | – | – | – | 88.5 | – |" in text
    assert "| 88.5 | 78.0 | -12.0 |" in text
    assert "NumGLUE-ds; sari: 20Minuten." in text


def test_cells_above_the_diagonal_are_shown_and_enter_no_figure(tmp_path):
    run = make(tmp_path / "run", [[80, 33.3], [60, 90]])
    assert "| 1 task0 | 80.0 | 33.3 | 80.0 | – |" in matrix_markdown(run)


def test_rows_that_were_not_measured_are_left_out_of_the_matrix(tmp_path):
    run = make(tmp_path / "run", [[None, None], [66, 94]], op=[None, 80], bwt=[None, None])
    text = matrix_markdown(run)
    assert "| 2 task1 | 66.0 | 94.0 | 80.0 | – |" in text
    assert "1 task0" not in text


def test_formats(tmp_path):
    runs = three_seeds(tmp_path)
    texts = {form: render(runs, form) for form in FORMATS}
    assert len(set(texts.values())) == 4
    assert texts["terminal"] == shown(comparison_table(runs))
    with pytest.raises(UserError, match=r"'markdwon'.*did you mean 'markdown'"):
        render(runs, "markdwon")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (-0.04, "0.0"), (0.0, "0.0"), (100, "100.0"), (-10.26, "-10.3"), (4.75, "4.8")],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("MeetingBank", ["Meeting", "Bank"]),
        ("NumGLUE-cm", ["NumGLUE", "-cm"]),
        ("20Minuten", ["20", "Minuten"]),
        ("Py150", ["Py150"]),
        ("C-STANCE", ["C-", "STANCE"]),
        ("my_own_task", ["my_own_", "task"]),
        ("incomprehensible", ["incomprehensible"]),
        ("立场|x", ["立场|x"]),
    ],
)
def test_long_names_are_broken_and_nothing_is_lost(name, lines):
    assert break_name(name).split("\n") == lines
    assert "".join(lines) == name


def test_a_row_of_latex_cannot_begin_with_an_argument_of_the_row_before():
    assert escape_latex("[1ex]*") == "{[}1ex{]}{*}"  # after \\ both would be read as its own
    assert escape_markdown("`a` #1 ~b~") == r"\`a\` \#1 \~b\~"


def test_importing_the_report_loads_neither_pandas_nor_matplotlib():
    code = (
        "import sys, cl_mofo.report; "
        "print([m for m in ('pandas', 'matplotlib', 'torch', 'yaml') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_the_frame_and_the_table_agree(tmp_path):
    runs = three_seeds(tmp_path)
    frame = summarise(runs)
    assert f"{frame.loc[0, 'BWT']:.1f} ± {frame.loc[0, 'BWT_std']:.1f}" in render(runs)
