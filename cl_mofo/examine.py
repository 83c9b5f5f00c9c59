"""Answer and score one test set, keep the answers, and leave in between if asked to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from cl_mofo.config import Recipe
from cl_mofo.data.encoded import digest_of
from cl_mofo.data.plan import TaskPlan, encoder_for
from cl_mofo.data.records import Column, Splits
from cl_mofo.engine.ranks import Ranks
from cl_mofo.errors import TrainingError
from cl_mofo.evaluation import answer_cache, mark_unfinished, score
from cl_mofo.evaluation.answers import Answer, mean_loss
from cl_mofo.evaluation.decoding import fits
from cl_mofo.evaluation.generate import answer
from cl_mofo.evaluation.journal import Journal, forget
from cl_mofo.evaluation.losses import answer_loss
from cl_mofo.evaluation.scoring import example_scores
from cl_mofo.folder import CHECKPOINTS, RunFolder
from cl_mofo.observer import Observer
from cl_mofo.stopping import Stop, stopped
from cl_mofo.task import Settled

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
        self._weights: dict[int, str] = {}
        self._told = False

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
        settings, task = self.recipe.evaluation, self.plans[j].task
        rows = self.records[task.name][settings.split]
        self.observer.answering(self.plans[j], len(rows), learned)
        answers, loss = self._answers(language_model, learned, j)
        prompts, references = Column(rows, "prompt"), Column(rows, "answer")
        texts = mark_unfinished(
            [a.text for a in answers], [a.finished or a.settled for a in answers], references
        )
        sources = prompts if task.needs_sources else None
        metrics = score(task, texts, references, sources)
        if loss is not None and not math.isfinite(loss):
            raise TrainingError(
                f"the loss on {task.name} is {loss}: the model is broken. Lower optimizer.lr"
            )
        headline, whole = settings.metrics == "headline", metrics[task.headline]
        alone = None
        if self.ranks.first:
            alone = example_scores(task, texts, references, sources, whole)
        self.folder.write_predictions(
            self.after(learned),
            task.name,
            (
                {
                    "index": i,
                    "prediction": a.text,
                    "reference": reference,
                    "finished": a.finished,
                    "tokens": a.tokens,
                }
                | ({"settled": a.settled} if headline else {})
                | ({"score": alone[i]} if alone else {})
                for i, (a, reference) in enumerate(zip(answers, references, strict=True))
            ),
        )
        return ({task.headline: whole} if headline else metrics), loss

    def _answers(
        self, language_model: LanguageModel, learned: int, j: int
    ) -> tuple[list[Answer], float | None]:
        """Return the answers to task j and the mean loss on it, generated or from the cache."""
        task = self.plans[j].task
        rows = self.records[task.name][self.recipe.evaluation.split]
        key = self._key(language_model, learned, j) if self.ranks.first else None
        found = answer_cache.find(key, len(rows)) if key else None
        told = self.ranks.agree(found and [[astuple(a) for a in found[0]], found[1]])
        if told:
            self.folder.log.info("answers to %s are from the cache", task.name)
            self.observer.answered(len(rows), 0)
            return [Answer.of(row) for row in told[0]], told[1]
        answers, loss = self._generated(language_model, learned, j)
        if key and (loss is None or math.isfinite(loss)):
            answer_cache.keep(key, answers, loss)
        return answers, loss

    def _key(self, language_model: LanguageModel, learned: int, j: int) -> str | None:
        settings = self.recipe.evaluation
        if not settings.cache:
            return None
        if learned not in self._weights:
            self._weights = {learned: answer_cache.weights_digest(language_model.module)}
        told = settings.model_dump(exclude={"split", "tasks", "initial", "distance", "cache"})
        if settings.decoding == "sample":
            told["seed"] = self._seed(learned, j)
        return answer_cache.key_of(
            language_model,
            self._weights[learned],
            encoder_for(language_model.tokenizer, self.plans[j], self.recipe),
            digest_of(self.records[self.plans[j].task.name][settings.split])[0],
            told,
            self._settled(j),
        )

    def _settled(self, j: int) -> Settled | None:
        return self.plans[j].task.settled if self.recipe.evaluation.metrics == "headline" else None

    def _seed(self, learned: int, j: int) -> int:
        return self.recipe.seed + 1000 * learned + j

    def _generated(
        self, language_model: LanguageModel, learned: int, j: int
    ) -> tuple[list[Answer], float | None]:
        settings, plan = self.recipe.evaluation, self.plans[j]
        rows = self.records[plan.task.name][settings.split]
        encoder = encoder_for(language_model.tokenizer, plan, self.recipe)
        journal = self._journal(learned, j)
        if not (self._told or fits(language_model.module)):
            kind = type(language_model.module).__name__
            self.folder.log.info("answers of %s are generated by transformers", kind)
        self._told = True

        def keep(answers: Mapping[int, Answer]) -> None:
            with self.folder.writing(f"{CHECKPOINTS}/{journal.name}"):
                journal.keep(answers)

        def advance(examples: int, tokens: int) -> None:
            self.observer.answered(examples, tokens)
            if self.ranks.count == 1 or self.stop.overdue:
                self.leave_if_asked(self.stop.signal, j)

        answers = answer(
            language_model,
            encoder,
            rows,
            settings,
            seed=self._seed(learned, j),
            settled=self._settled(j),
            advance=advance,
            ranks=self.ranks,
            known=journal.known(len(rows)),
            keep=keep,
        )
        if not settings.losses:
            return answers, None
        loss = mean_loss(answers)
        if loss is None:
            loss = answer_loss(language_model, encoder, rows, settings, self.ranks)
        return answers, loss

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
