"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_mofo.config import Recipe
    from cl_mofo.data.plan import TaskPlan
    from cl_mofo.loop import Loop
    from cl_mofo.tuning import Tuned


class Observer:
    """Watch a run in silence; a subclass overrides what it wants to hear."""

    def loading(self, recipe: Recipe) -> None:
        """Hear that the recipe and the data are good, and the model is loaded next."""

    def started(self, recipe: Recipe, plans: Sequence[TaskPlan], folder: Path) -> None:
        """Hear that the run begins."""

    def resumed(self, where: str) -> None:
        """Hear that the run goes on, and from where."""

    def warned(self, text: str) -> None:
        """Hear of something that the user should know, and that does not stop the run."""

    def learning(self, loop: Loop) -> None:
        """Hear that a task's first step is next."""

    def skipped(self, loop: Loop, step: int, reason: str) -> None:
        """Hear which step of the task, from 1, was not taken, and what of it was not finite."""

    def stepped(self, loop: Loop) -> None:
        """Hear that an optimizer step was taken, or skipped."""

    def learned(self, loop: Loop) -> None:
        """Hear that a task's last step was taken."""

    def answering(self, plan: TaskPlan, examples: int, learned: int) -> None:
        """Hear that a test set is next, after `learned` tasks."""

    def answered(self, examples: int, tokens: int) -> None:
        """Hear that so many more examples were answered, with so many tokens."""

    def measured(self, results: Mapping[str, Any]) -> None:
        """Hear the results so far, after each task."""

    def finished(self, results: Mapping[str, Any], folder: Path) -> None:
        """Hear that the run is done."""

    def next_run(
        self, number: int, total: int, recipe: Recipe, folder: Path, skipped: str | None
    ) -> None:
        """Hear which of a sweep's runs is next, counted from 1, or why it is skipped."""

    def failed(self, error: Exception) -> None:
        """Hear that a sweep's run ended early; the next is not touched by it."""

    def swept(self, folder: Path) -> None:
        """Hear that a sweep came to its end, and which folder holds its runs."""

    def tuned(self, tuned: Tuned) -> None:
        """Hear what came out of a tuning."""
