"""One run under way: learn the tasks one after another, score after each, fill the matrix.

What it has measured it keeps in `checkpoints/progress.json` after every test set, all that training
needs in checkpoints; from both it goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cl_mofo.checkpoint.room import check_room, room_for
from cl_mofo.checkpoint.rows import read_rows, written_rows
from cl_mofo.checkpoint.saving import Saving
from cl_mofo.checkpoint.store import Checkpoint, Store, name_of
from cl_mofo.config import Recipe
from cl_mofo.data.benchmark import make_benchmark
from cl_mofo.data.plan import TaskPlan
from cl_mofo.data.suites import Suite
from cl_mofo.engine import Engine
from cl_mofo.errors import NotSavedError, NotWrittenError, TrainingError
from cl_mofo.evaluation.distance import distance
from cl_mofo.evaluation.prose import prose_loss, prose_tokens
from cl_mofo.examine import Examiner
from cl_mofo.folder import PROGRESS, RunFolder
from cl_mofo.loop import Loop
from cl_mofo.loopstate import taken_back
from cl_mofo.memory import explained
from cl_mofo.observer import Observer
from cl_mofo.outcome import draw, save_model
from cl_mofo.progress import Progress, cells_tested
from cl_mofo.steplog import StepLog
from cl_mofo.stopping import Stop, stopped
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    import torch

    from cl_mofo.model import LanguageModel

STEPS = "steps.parquet"


class TaskSequence:
    """The matrix a run fills, and where it writes.

    Args:
        recipe: the whole recipe.
        plans: the tasks in their order.
        suite: their records.
        strategies: in their order of acting.
        language_model: trained in place.
        folder: where results go.
        observer: told what happens.
        engine: what computes; one device by default. On several ranks each makes the sequence,
            with a folder that keeps nothing on all but the first.
        identity: what the run is made of, kept with its checkpoints.
        stop: whether a signal asks to leave.
    """

    def __init__(
        self,
        recipe: Recipe,
        plans: Sequence[TaskPlan],
        suite: Suite,
        strategies: Sequence[Strategy],
        language_model: LanguageModel,
        folder: RunFolder,
        observer: Observer,
        engine: Engine | None = None,
        identity: Mapping[str, Any] | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.recipe, self.plans, self.records = recipe, plans, suite.records
        self.language_model, self.folder, self.observer = language_model, folder, observer
        self.identity = identity or {}
        self.stop = stop or Stop()
        self.benchmark = make_benchmark(suite.records)
        self.entries = sum(p.numel() for p in language_model.module.parameters())
        self.steps = StepLog(observer)
        self.saving = Saving(recipe.checkpoint, self.stop, self._save)
        self.loop = Loop(
            language_model=language_model,
            plans=plans,
            recipe=recipe,
            strategies=strategies,
            auxiliary=suite.auxiliary,
            engine=engine,
            plugins=[self.steps, self.saving],
        )
        self.loop.saver = self.saving
        self.ranks = self.loop.engine.ranks
        self.examiner = Examiner(
            recipe, plans, self.records, folder, observer, self.ranks, self.stop
        )
        self.store = Store(folder.path, self.ranks, recipe.checkpoint.keep)
        self.progress = Progress.of(len(plans))
        self._origin: dict[str, torch.Tensor] = {}
        self._prose: list[int] = []
        if suite.prose is not None:
            most = recipe.data.prose_tokens
            self._prose = prose_tokens(language_model, suite.prose, most)
        self._began = 0.0
        self._saved = ""

    def learn(self, checkpoint: Checkpoint | None = None, kept: Any = None) -> dict[str, Any]:
        """Learn and score everything, from where it was left; return the results.

        Args:
            checkpoint: what to go on from.
            kept: what `progress.json` held.

        Raises:
            UserError: there is not enough room for its checkpoints and its model.
            TrainingError: training diverged; what was measured is in the folder.
            DamagedError: the checkpoint or what was kept is not as it was written.
            StoppedError: a signal asked to stop; the run can go on.
            KeyboardInterrupt: the user did; the run can go on.
        """
        self._check_room()
        self.observer.started(self.recipe, self.plans, self.folder.path)
        if self.loop.way.refused is not None:
            told = f"examples are padded, as they cannot be packed: {self.loop.way.refused}"
            self.folder.log.warning(told)
            self.observer.warned(told)
        self._remember_origin()
        self._restore(checkpoint, kept)
        try:
            return self._learn()
        except BaseException as error:
            with suppress(NotWrittenError):  # as on a full disk: the reason to stop says more
                self.folder.write_metrics(self.steps.rows)
            if isinstance(error, TrainingError):
                last = self.store.newest()
                kept = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
                raise type(error)(f"{error}. In {self.folder.path}, {kept}") from error
            raise

    def _check_room(self) -> None:
        recipe, trained = self.recipe, sum(self.loop.sizes.values())
        with self.ranks.together():
            if self.ranks.first:
                keep, model = recipe.checkpoint.keep, recipe.save_model
                check_room(self.folder.path, trained, self.entries, keep, save_model=model)

    def _remember_origin(self) -> None:
        if self.recipe.evaluation.distance:
            with self.loop.engine.whole() as module:
                if self.ranks.first:
                    weights = self.loop.weights(module)
                    self._origin = {n: w.to("cpu", copy=True) for n, w in weights.items()}

    def _restore(self, checkpoint: Checkpoint | None, kept: Any) -> None:
        tasks = len(self.plans)
        if checkpoint is not None:
            engine = self.loop.engine
            spans, parts = engine.spans(), engine.parameters()
            wanted = {name: (span, parts[name].shape) for name, span in spans.items()}
            with explained("a checkpoint is loaded", self.loop.remedies.holding):
                taken_back(self.loop, checkpoint.state(self.ranks.rank, wanted))
            self.progress = Progress.from_json(dict(checkpoint.content), tasks)
            self.steps.rows = read_rows(checkpoint.folder / STEPS)
            self._saved = checkpoint.name
        self.examiner.back_to(self.progress.learned)
        if kept is not None:
            found = Progress.from_json(kept, tasks)
            found.back_to(self.progress.learned)
            found.learned, found.skipped = self.progress.learned, self.progress.skipped
            found.seconds["training"] = self.progress.seconds["training"]
            self.progress = found

    def _learn(self) -> dict[str, Any]:
        folder, plans, progress = self.folder, self.plans, self.progress
        self._write()
        self._keep_progress()
        (asked,) = self.ranks.largest([self.stop.signal])
        if asked:
            raise stopped(asked, "before its first step")
        if self._prose and not (progress.learned or progress.prose):
            with self.loop.evaluating() as model:
                self._look_back(model, 0)
            self._keep_progress()
        if self.recipe.evaluation.initial and not progress.learned:
            self._test(0, range(len(plans)))
            self._write()
        for i, (plan, experience) in enumerate(
            zip(plans, self.benchmark.train_stream, strict=True)
        ):
            if i == progress.learned:
                self._train(plan, experience)
            tested = cells_tested(i + 1, len(plans), self.recipe.evaluation.tasks)
            if i + 1 == progress.learned and self._test(i + 1, tested):
                self.observer.measured(self._write())
        if self.recipe.save_model:
            save_model(self.loop, folder)
        folder.write_metrics(self.steps.rows)
        results = self._write()
        if self.ranks.first:
            draw(results, folder)
        self.observer.finished(results, folder.path)
        folder.log.info("finished: OP %.2f", results["op"][-1])
        return results | {"folder": str(folder.path)}

    def _train(self, plan: TaskPlan, experience: Any) -> None:
        self.folder.log.info("learning %s", plan.task.name)
        self._began = time.perf_counter()
        self.loop.train(experience, eval_streams=[])
        self.progress.learned += 1
        self.folder.write_record(self.examiner.after(self.progress.learned), self._records())
        self.saving.save()

    def _save(self) -> str:
        """Write a checkpoint; say where it is, or why there is none: training can go on."""
        loop, engine = self.loop, self.loop.engine
        name = name_of(loop.global_step, self.progress.learned)
        if name == self._saved:  # nothing has changed, and the only good one is not to be replaced
            return f"checkpoint {name} is written"
        now = time.perf_counter()
        self.progress.seconds["training"] += now - self._began
        self._began, self.progress.skipped = now, self.loop.skipped
        state = loop.state_dict()
        try:
            self.store.save(
                loop.global_step,
                self.progress.learned,
                state,
                engine.spans(),
                self.identity,
                self.progress.to_json(),
                {STEPS: written_rows(self.steps.rows)},
            )
        except NotSavedError as error:
            told = f"no checkpoint could be written: {error}. {room_for(state, self.folder.path)}"
            self.folder.log.warning(told)
            self.observer.warned(told)
            return told
        self._saved = name
        self.folder.log.info("checkpoint %s", name)
        return f"checkpoint {name} is written"

    def _test(self, learned: int, tested: Sequence[int]) -> bool:
        """Answer and score what has not been tested yet; return whether there was anything."""
        missing = self.progress.missing(learned, tested)
        if not missing:
            return False
        with self.loop.evaluating() as model:
            self._look_back(model, learned)
            for task in missing:
                began = time.perf_counter()
                metrics, loss = self.examiner.test(model, learned, task)
                headline = self.plans[task].task.headline
                self.progress.add(learned, task, metrics, headline, loss)
                self.progress.seconds["evaluation"] += time.perf_counter() - began
                self._keep_progress()
                self.examiner.kept(learned, task)
                after, tested_task = self.examiner.after(learned), self.plans[task].task.name
                self.folder.log.info("after %s: %s %s", after, tested_task, metrics)
                asked = self.ranks.largest([self.stop.signal])
                self.examiner.leave_if_asked(asked[0], task)
        return True

    def _look_back(self, model: LanguageModel, learned: int) -> None:
        """Measure what is left of the initial model: the way from it, and its loss on prose."""
        distances, losses = self.progress.distances, self.progress.prose
        if self._origin and len(distances) < learned:
            distances.append(distance(self.loop.weights(model.module), self._origin))
        if self._prose and len(losses) <= learned:
            losses.append(prose_loss(model, self._prose))

    def _keep_progress(self) -> None:
        kept = {"identity": dict(self.identity), "progress": self.progress.to_json()}
        self.folder.write_checked(PROGRESS, kept)

    def _write(self) -> dict[str, Any]:
        """Write `results.json` as far as the run has come, and return it."""
        self.progress.skipped = self.loop.skipped
        strategy = "+".join(s.name for s in self.loop.strategies)
        results = self.progress.results(self.recipe, self.plans, self.records, strategy)
        self.folder.write_json("results.json", results)
        return results

    def _records(self) -> dict[str, Any]:
        return {s.name: record for s in self.loop.strategies if (record := s.record())}
