"""Show a run in the terminal: progress bars, and the table so far after each task."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cl_mofo.errors import UserError
from cl_mofo.observer import Observer
from cl_mofo.untrusted import printable

if TYPE_CHECKING:
    from cl_mofo.config import Recipe
    from cl_mofo.data.plan import TaskPlan
    from cl_mofo.loop import Loop
    from cl_mofo.tuning import Tuned


SECONDS_BETWEEN_LINES = 30.0
"""How often progress is told where no bar can be drawn."""


def terminal() -> RichConsole:
    """Return standard output; where it is no terminal, wide enough for a table of eight tasks."""
    console = RichConsole()
    wide = console.is_terminal or "COLUMNS" in os.environ
    return RichConsole(emoji=False, width=None if wide else 120)


def _shown(value: object) -> str:
    return escape(printable(str(value)))


class Console(Observer):
    """Write to a terminal, or plain lines where there is none.

    Args:
        console: where to write; standard output by default.
    """

    def __init__(self, console: RichConsole | None = None) -> None:
        self.console = console or terminal()
        self._progress: Progress | None = None
        self._tokens = 0
        self._began = self._told = 0.0

    def loading(self, recipe: Recipe) -> None:
        """Say which model is loaded."""
        self._say(f"loading {recipe.model.path}")

    def started(self, recipe: Recipe, plans: Sequence[TaskPlan], folder: Path) -> None:
        """Say what is run and where it is written."""
        self.console.print(
            f"[bold]{escape(recipe.strategy)}[/] on {escape(recipe.data.suite)} "
            f"({len(plans)} tasks) with {_shown(recipe.model.path)}, seed {recipe.seed} "
            f"-> {_shown(folder)}",
            highlight=False,
            soft_wrap=True,
        )

    def resumed(self, where: str) -> None:
        """Say where the run goes on."""
        self._say(f"going on from {where}")

    def warned(self, text: str) -> None:
        """Say what the user should know."""
        self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def learning(self, loop: Loop) -> None:
        """Open a bar over the task's steps."""
        name = f"learn {loop.plan.task.name}"
        self._open(name, loop.total_steps, "loss  -  ", loop.step)

    def skipped(self, loop: Loop, step: int, reason: str) -> None:
        """Say which step was skipped, and why."""
        self.console.print(
            f"skipped step {step} of {loop.total_steps} of {loop.plan.task.name}: {reason}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def stepped(self, loop: Loop) -> None:
        """Advance by a step."""
        rate = self._rate(loop.step_tokens)
        self._advance(1, f"loss {loop.heard_loss:.3f}  {rate}")

    def learned(self, loop: Loop) -> None:
        """Close the bar, and say how it went where no bar was seen."""
        self._close()
        if not self.console.is_terminal:
            seconds = time.perf_counter() - self._began
            self.console.print(
                f"learned {loop.plan.task.name}: {loop.step} steps, "
                f"loss {loop.heard_loss:.3f}, {seconds:.1f} s",
                highlight=False,
                markup=False,
            )

    def answering(self, plan: TaskPlan, examples: int, learned: int) -> None:
        """Open a bar over a test set."""
        self._open(f"test {plan.task.name}", examples, "")

    def answered(self, examples: int, tokens: int) -> None:
        """Advance by answered examples."""
        self._advance(examples, self._rate(tokens))

    def measured(self, results: Mapping[str, Any]) -> None:
        """Print the table so far."""
        from cl_mofo.report import matrix_table, parse_results

        self._close()
        self.console.print(matrix_table(parse_results(dict(results), "results.json")))

    def finished(self, results: Mapping[str, Any], folder: Path) -> None:
        """Say what came out and where it lies."""
        bwt = results["bwt"][-1]
        self.console.print(
            f"OP {results['op'][-1]:.2f}   BWT {'-' if bwt is None else f'{bwt:+.2f}'}   "
            f"learned {results['learned'][-1]:.2f}   "
            f"({results['seconds']['training']:.0f} s training, "
            f"{results['seconds']['evaluation']:.0f} s evaluation)",
            highlight=False,
        )
        self.console.print(
            f"Written to {_shown(folder)}: results.json, metrics.parquet, predictions/, "
            f"figures/matrix.png, figures/curves.png",
            highlight=False,
            soft_wrap=True,
        )

    def next_run(
        self, number: int, total: int, recipe: Recipe, folder: Path, skipped: str | None
    ) -> None:
        """Say which of a sweep's runs is next, or why it is skipped."""
        reason = f": skipped, {skipped} ({folder})" if skipped else ""
        self.console.print(
            printable(f"run {number} of {total}: {folder.name}{reason}"),
            style=None if skipped else "bold",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def failed(self, error: Exception) -> None:
        """Say why a sweep's run ended early."""
        self._close()
        self._say(f"stopped: {error}")

    def swept(self, folder: Path) -> None:
        """Print the table over a sweep's folder, and say where it is."""
        from cl_mofo.report import comparison_table, load_runs

        try:
            self.console.print(comparison_table(load_runs([folder])))
        except UserError as error:  # of a run that is not the sweep's, or none has begun
            self._say(f"no table: {error}")
        self._say(f"The runs are in {folder}; this table again: cl-mofo report {folder}")

    def tuned(self, tuned: Tuned) -> None:
        """Print what came out of a tuning, and how to go on."""
        from cl_mofo.report.tuning import tuning_table
        from cl_mofo.tuning import BEST

        self.console.print(tuning_table(tuned))
        if tuned.best is None:
            self._say(
                f"No recipe is written, as not every strategy has a best one ({tuned.folder})"
                + ("; the best.yaml there is of before" if (tuned.folder / BEST).exists() else "")
            )
        else:
            imports = [word for path in tuned.imports for word in ("--import", str(path))]
            command = shlex.join(["cl-mofo", "run", str(tuned.best), *imports])
            self._say(f"The recipe with the best is {tuned.best}; to run it: {command}")

    def stop(self) -> None:
        """Leave the terminal as it should be, whatever happened."""
        self._close()

    def _open(self, name: str, total: int, detail: str, done: int = 0) -> None:
        self._close()
        self._progress = Progress(
            TextColumn("{task.description:<20}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar = self._progress.add_task(name, total=total, detail=detail, completed=done)
        self._progress.start()
        self._tokens = 0
        self._began = self._told = time.perf_counter()

    def _rate(self, tokens: int) -> str:
        self._tokens += tokens
        return f"{self._tokens / max(1e-9, time.perf_counter() - self._began):,.0f} tok/s"

    def _advance(self, count: int, detail: str) -> None:
        if self._progress is None:
            return
        self._progress.update(self._bar, advance=count, detail=detail)
        now = time.perf_counter()
        if not self.console.is_terminal and now - self._told > SECONDS_BETWEEN_LINES:
            self._told = now
            bar = self._progress.tasks[0]
            left = f"{bar.time_remaining:.0f} s left" if bar.time_remaining else ""
            parts = (bar.description, f"{bar.completed:.0f}/{bar.total:.0f}", detail, left)
            line = "  ".join(part for part in parts if part)
            self.console.print(line, highlight=False, markup=False)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
