"""The report as a table of strategies: for a terminal, Markdown, LaTeX or CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.text import Text

from cl_mofo.errors import UserError, nearest
from cl_mofo.report.frame import csv
from cl_mofo.report.layout import Fitting, grid
from cl_mofo.report.results import RunResults
from cl_mofo.report.summary import CONVENTION, Entry, Setting, Stat, entries, notes
from cl_mofo.report.text import ABSENT, escape_latex, escape_markdown, markdown_table, number

FORMATS = ("terminal", "markdown", "csv", "latex")

_LATEX_CONVENTION = (
    r"OP$_t$ = mean over $i \le t$ of $R_{t,i}$; BWT$_t$ = mean over $i < t$ of "
    r"$(R_{t,i} - R_{i,i})$, divisor $t-1$, signed; learned = mean over $i$ of $R_{i,i}$; "
    r"all in percent; mean $\pm$ sample standard deviation ($n-1$) over seeds"
)
LATEX = r"""% needs \usepackage{{adjustbox,booktabs}}
\begin{{table}}
\centering
\begin{{adjustbox}}{{max width=\textwidth}}
\begin{{tabular}}{{{columns}}}
\toprule
{head}
\midrule
{body}
\bottomrule
\end{{tabular}}
\end{{adjustbox}}
\par\smallskip
\begin{{minipage}}{{\textwidth}}\footnotesize
{notes}
\end{{minipage}}
\end{{table}}"""


def render(runs: Sequence[RunResults], format: str = "markdown", *, paper: bool = False) -> str:
    """Return the report over runs as text.

    Args:
        runs: the runs, as `load_runs` gives them.
        format: "markdown", "csv" or "latex", or "terminal" for plain text 120 columns wide; a
            terminal is better served by `comparison_table`.
        paper: add the paper's Table 2.

    Markdown, LaTeX and the plain table carry their notes under the figures. CSV is figures alone:
    print `notes(entries(runs, paper=paper))` elsewhere, such as on stderr.

    Raises:
        UserError: an unknown format.
    """
    if format == "csv":
        return csv(runs, paper=paper)
    table = entries(runs, paper=paper)
    if format == "markdown":
        return markdown(table, paper=paper)
    if format == "latex":
        return latex(table, paper=paper)
    if format == "terminal":
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(terminal(table, paper=paper))
        return capture.get()
    raise UserError(
        f"unknown format '{format}'{nearest(format, FORMATS)}. Formats: {', '.join(FORMATS)}"
    )


def comparison_table(runs: Sequence[RunResults], *, paper: bool = False) -> RenderableType:
    """Return the report over runs for a terminal, for a rich console to print."""
    return terminal(entries(runs, paper=paper), paper=paper)


def markdown(table: Sequence[Entry], *, paper: bool = False) -> str:
    """Return entries as Markdown: one table per setting, the notes below."""
    blocks = []
    for setting, rows in _by_setting(table):
        if title := setting_title(setting):
            blocks.append(f"**{escape_markdown(title)}**")
        blocks.append(markdown_table(*_grid(setting, rows, paper, " ".join, _in_line)))
    blocks += [f"{note}." for note in notes(table)]
    return "\n\n".join(blocks) + "\n"


def latex(table: Sequence[Entry], *, paper: bool = False) -> str:
    """Return entries as LaTeX: one booktabs table per setting, the notes in a paragraph below."""
    return (
        "\n\n".join(_latex_table(setting, rows, paper) for setting, rows in _by_setting(table))
        + "\n"
    )


def _latex_table(setting: Setting, rows: Sequence[Entry], paper: bool) -> str:
    head, body = _grid(setting, rows, paper, " ".join, _in_math)
    lines = [" & ".join(map(escape_latex, head))]
    lines += [" & ".join([*map(escape_latex, row[:2]), *row[2:]]) for row in body]
    said = [_LATEX_CONVENTION if note == CONVENTION else escape_latex(note) for note in notes(rows)]
    if title := setting_title(setting):
        said.insert(0, escape_latex(title))
    return LATEX.format(
        columns="l" + "r" * (len(head) - 1),
        head=lines[0] + r" \\",
        body="\n".join(line + r" \\" for line in lines[1:]),
        notes="\n".join(f"{note}." for note in said),
    )


def terminal(table: Sequence[Entry], *, paper: bool = False) -> RenderableType:
    """Return entries for a rich console: one table per setting, the notes below.

    In a terminal too narrow for one table the scores by task follow in a second one.
    """
    parts: list[RenderableType] = []
    for setting, rows in _by_setting(table):
        head, body = _grid(setting, rows, paper, "\n".join, _in_two_lines)
        cells = [[Text(cell) for cell in row] for row in body]
        split = len(head) - len(setting.tasks)
        title = setting_title(setting)
        parts.append(
            Fitting(
                [grid(head, cells, title=title)],
                [grid(head, cells, title=title, gap=1)],
                [
                    grid(head[:split], [row[:split] for row in cells], title=title),
                    grid([head[0], *head[split:]], [[row[0], *row[split:]] for row in cells]),
                ],
            )
        )
        parts.append(Text())
    parts += [Text(f"{note}.", style="dim") for note in notes(table)]
    return Group(*parts)


def _by_setting(table: Iterable[Entry]) -> Iterator[tuple[Setting, list[Entry]]]:
    for setting, rows in groupby(table, key=lambda entry: entry.setting):
        yield setting, list(rows)


def setting_title(setting: Setting) -> str:
    """Return what stands above a setting's table; empty where nothing is known."""
    return " · ".join(part for part in (setting.suite, setting.model) if part)


def _grid(
    setting: Setting,
    rows: Sequence[Entry],
    paper: bool,
    join: Callable[[Sequence[str]], str],
    show: Callable[[Stat], str],
) -> tuple[list[str], list[list[str]]]:
    """Return the head and the body of a setting's table, labels by `join`, figures by `show`."""
    head = ["strategy", "n", "OP", "BWT", "learned"]
    head += ["paper OP", "paper BWT"] * paper
    body = []
    for entry in rows:
        figures = [entry.op, entry.bwt, entry.learned]
        if paper:
            figures += [Stat(entry.paper and entry.paper.op), Stat(entry.paper and entry.paper.bwt)]
        count = str(len(entry.runs)) if entry.runs else ABSENT
        body.append([join(_label_parts(entry)), count, *map(show, (*figures, *entry.final))])
    return [*head, *setting.tasks], body


def row_label(entry: Entry) -> str:
    """Return what stands at the beginning of an entry's row, on one line."""
    return " ".join(_label_parts(entry))


def _label_parts(entry: Entry) -> list[str]:
    label = [entry.strategy]
    if entry.variant:
        label.append(f"({entry.variant})")
    if entry.alone:
        label.append(f"({entry.alone})")
    if not entry.finished:
        done = max(run.learned_tasks for run in entry.runs)
        label += ["unfinished:", f"{done} of {len(entry.setting.tasks)} tasks"]
    return label


def _in_line(figure: Stat) -> str:
    mean, std = map(number, figure)
    return mean if figure.std is None else f"{mean} ± {std}"


def _in_two_lines(figure: Stat) -> str:
    mean, std = map(number, figure)
    return mean if figure.std is None else f"{mean}\n±{std}"


def _in_math(figure: Stat) -> str:
    mean, std = map(number, figure)
    if figure.mean is None:
        return "--"
    return f"${mean}$" if figure.std is None else rf"${mean} \pm {std}$"
