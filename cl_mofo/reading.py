"""The commands that read what is there: `cl-mofo report`, `compare`, `check-data` and `list`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cl_mofo.console import terminal
from cl_mofo.errors import UserError
from cl_mofo.options import ImportOption, SetOption, examples

commands = typer.Typer()

RunsArgument = Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")]
FormatOption = Annotated[str, typer.Option("--format", help="terminal, markdown, csv or latex.")]


@commands.command(
    epilog=examples(
        "cl-mofo report outputs",
        "cl-mofo report outputs/a outputs/b --paper --format latex > table.tex",
    )
)
def report(
    runs: RunsArgument,
    form: FormatOption = "terminal",
    paper: Annotated[
        bool, typer.Option("--paper", help="Add the MoFO paper's Table 2 beside ours.")
    ] = False,
    figures: Annotated[
        Path | None, typer.Option(help="Also draw the heat maps and curves into this folder.")
    ] = None,
) -> None:
    """Print one table over runs: OP, BWT, what was learned, and each task's final score."""
    from cl_mofo.report import FORMATS, comparison_table, draw, entries, load_runs, notes, render

    if form not in FORMATS:
        raise UserError(f"--format {form}: choose {', '.join(FORMATS)}")
    found = load_runs(runs)
    if form == "terminal":
        terminal().print(comparison_table(found, paper=paper))
    else:
        print(render(found, form, paper=paper))
    if form == "csv":
        print("\n".join(notes(entries(found, paper=paper))), file=sys.stderr)
    if figures is not None:
        print(f"Drawn to {figures}: {', '.join(draw(found, figures))}", file=sys.stderr)


@commands.command(
    epilog=examples(
        "cl-mofo compare outputs --baseline sequential",
        "cl-mofo compare outputs --baseline 'mofo (mofo.update_fraction=0.1)' --format markdown",
    )
)
def compare(
    runs: RunsArgument,
    baseline: Annotated[
        str,
        typer.Option(help="The strategy that others are compared with, or a row's whole label."),
    ],
    form: FormatOption = "terminal",
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    resamples: Annotated[
        int, typer.Option(help="Test sets drawn for intervals, and permutations for p values.")
    ] = 10_000,
) -> None:
    """Print which differences from a baseline are more than noise of the test examples.

    Seed by seed, on the same test examples: OP and BWT with bootstrap intervals, the differences
    with intervals and p values of a paired permutation test, and their means over seeds.
    """
    from cl_mofo import report

    if form not in report.FORMATS:
        raise UserError(f"--format {form}: choose {', '.join(report.FORMATS)}")
    found = report.load_runs(runs)
    with Console(stderr=True).status("drawing test sets"):
        compared = report.compare(found, baseline, confidence=confidence, resamples=resamples)
    if form == "terminal":
        terminal().print(report.terminal_comparison(compared))
    else:
        print(report.render_comparison(compared, form), end="")
    if form == "csv":
        print("\n".join(compared.notes), file=sys.stderr)


@commands.command(
    "check-data", epilog=examples("cl-mofo check-data ./TRACE-5000 --model ./TinyLlama")
)
def check_data(
    path: Annotated[Path, typer.Argument(help="The folder of a suite, such as TRACE's.")],
    recipe: Annotated[
        str | None, typer.Option(help="A recipe whose tasks and budgets are meant.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model whose tokens are counted; default: the embedded one."),
    ] = None,
    assignments: SetOption = None,
    imports: ImportOption = None,
) -> None:
    """Validate a folder of tasks and print sizes, token lengths and truncation."""
    from cl_mofo import listing
    from cl_mofo.config import TINY
    from cl_mofo.data.check import check_folder
    from cl_mofo.data.plan import plan_tasks
    from cl_mofo.discovery import registry
    from cl_mofo.recipes import read_request
    from cl_mofo.resolve import resolve

    request = read_request(
        recipe,
        model=model or TINY,
        data=str(path),
        assignments=assignments or (),
        imports=imports or (),
    )
    checked = resolve(request.complete())
    plans = plan_tasks(checked, registry(checked.imports))
    from cl_mofo.model import load_tokenizer

    found = check_folder(path, plans, load_tokenizer(checked.model))
    console = terminal()
    console.print(listing.checks(found))
    console.print(
        f"Tokens of {checked.model.path}: median (longest), and the share of records that the "
        f"budget cuts",
        highlight=False,
        markup=False,
    )
    for remark in found.remarks:
        console.print(f"- {remark}", highlight=False, markup=False)


@commands.command("list", epilog=examples("cl-mofo list strategies", "cl-mofo list runs"))
def list_things(
    what: Annotated[str, typer.Argument(help="strategies, tasks or runs.")],
    imports: ImportOption = None,
) -> None:
    """List what can be named: strategies, tasks or runs."""
    from cl_mofo import listing

    listings = {"strategies": listing.strategies, "tasks": listing.tasks, "runs": listing.runs}
    if what not in listings:
        raise UserError(f"list {what}: choose {', '.join(listings)}")
    terminal().print(listings[what](tuple(imports or ())))
