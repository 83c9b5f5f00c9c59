"""Answer and score one test set, keep the answers, and leave in between if asked to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cl_mofo.config import Recipe
from cl_mofo.data.plan import TaskPlan, encoder_for
from cl_mofo.data.records import Column, Splits
from cl_mofo.engine.ranks import Ranks
from cl_mofo.errors import TrainingError
from cl_mofo.evaluation import mark_unfinished, score
from cl_mofo.evaluation.generate import Answer, answer, answer_loss
from cl_mofo.evaluation.journal import Journal, forget
from cl_mofo.folder import CHECKPOINTS, RunFolder
from cl_mofo.observer import Observer
from cl_mofo.stopping import Stop, stopped

if TYPE_CHECKING:
    from cl_mofo.model import LanguageModel


class Examiner:
    """Test a model on the tasks of a run.

    Args:
        recipe: the whole recipe.
        plans: the tasks in their order.
        records: their records.
        folder: where predictions go.
        observer: told of progress.
        ranks: the processes that share the test sets.
        stop: whether a signal asks to leave.
    """

    def __init__(
        self,
        recipe: Recipe,
        plans: Sequence[TaskPlan],
        records: Mapping[str, Splits],
        folder: RunFolder,
        observer: Observer,
        ranks: Ranks,
        stop: Stop,
    ) -> None:
        self.recipe, self.plans, self.records = recipe, plans, records
        self.folder, self.observer, self.ranks, self.stop = folder, observer, ranks, stop

    def after(self, learned: int) -> str:
        """Return the name of the state after so many tasks, as of a folder."""
        return f"{learned:02d}-{self.plans[learned - 1].task.name if learned else 'initial'}"

    def test(
        self, language_model: LanguageModel, learned: int, j: int
    ) -> tuple[dict[str, float], float | None]:
        """Test a model that has learned so many tasks on task j.

        Returns:
            the test set's metrics, and the mean loss per answer token if it is wanted.

        Raises:
            TrainingError: the loss is not finite.
            StoppedError, KeyboardInterrupt: a signal asks to leave; the answers so far are kept.
        """
        settings, plan = self.recipe.evaluation, self.plans[j]
        rows = self.records[plan.task.name][settings.split]
        prompts, references = Column(rows, "prompt"), Column(rows, "answer")
        encoder = encoder_for(language_model.tokenizer, plan, self.recipe)
        journal = self._journal(learned, j)

        def keep(answers: Mapping[int, Answer]) -> None:
            with self.folder.writing(f"{CHECKPOINTS}/{journal.name}"):
                journal.keep(answers)

        def advance(examples: int, tokens: int) -> None:
            self.observer.answered(examples, tokens)
            if self.ranks.count == 1 or self.stop.overdue:
                self.leave_if_asked(self.stop.signal, j)

        self.observer.answering(plan, len(rows), learned)
        answers = answer(
            language_model,
            encoder,
            prompts,
            settings,
            seed=self.recipe.seed + 1000 * learned + j,
            advance=advance,
            ranks=self.ranks,
            known=journal.known(len(rows)),
            keep=keep,
        )
        texts = mark_unfinished(
            [a.text for a in answers], [a.finished for a in answers], references
        )
        sources = prompts if plan.task.needs_sources else None
        metrics = score(plan.task, texts, references, sources)
        loss = None
        if settings.losses:
            loss = answer_loss(language_model, encoder, rows, settings, self.ranks)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss on {plan.task.name} is {loss}: the model is broken. Lower "
                    f"optimizer.lr"
                )
        self.folder.write_predictions(
            self.after(learned),
            plan.task.name,
            (
                {
                    "index": i,
                    "prediction": a.text,
                    "reference": reference,
                    "finished": a.finished,
                    "tokens": a.tokens,
                }
                for i, (a, reference) in enumerate(zip(answers, references, strict=True))
            ),
        )
        return metrics, loss

    def kept(self, learned: int, j: int) -> None:
        """Hear that what a test showed is kept: its answers so far are needed no more."""
        if self.ranks.first:
            self._journal(learned, j).clear()

    def back_to(self, learned: int) -> None:
        """Forget answers of models that have learned more tasks: they are trained anew."""
        if self.ranks.first:
            forget(self.folder.path / CHECKPOINTS, learned)

    def _journal(self, learned: int, j: int) -> Journal:
        name = f"{self.after(learned)}-{self.plans[j].task.name}"
        return Journal(self.folder.path / CHECKPOINTS, name, self.ranks.rank)

    def leave_if_asked(self, asked: int, task: int) -> None:
        """Leave if a signal has asked for it.

        Raises:
            StoppedError, KeyboardInterrupt: it has.
        """
        if asked:
            where = f"while testing {self.plans[task].task.name}"
            raise stopped(asked, f"{where}; the answers so far are kept")
