"""One run under way: learn the tasks one after another, score after each, fill the matrix."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cl_mofo.config import Recipe
from cl_mofo.data.benchmark import make_benchmark
from cl_mofo.data.plan import TaskPlan, encoder_for
from cl_mofo.data.records import Record
from cl_mofo.data.suites import Suite
from cl_mofo.data.tokenise import Encoder
from cl_mofo.engine import Engine
from cl_mofo.errors import TrainingError
from cl_mofo.evaluation import ResultMatrix, mark_unfinished, score
from cl_mofo.evaluation.generate import answer, answer_loss
from cl_mofo.folder import RunFolder
from cl_mofo.loop import Loop
from cl_mofo.observer import Observer
from cl_mofo.report import curves, heat_map, parse_results
from cl_mofo.steplog import StepLog
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    import torch

    from cl_mofo.model import LanguageModel

SCHEMA = 1


def distance(weights: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> float:
    """Return the mean over parameter tensors of ||theta - theta_0|| / ||theta_0||.

    MoFO paper (arXiv 2407.20999), appendix C.4. A tensor that starts at zero has no relative
    change and is left out.
    """
    changes = []
    for name, origin in start.items():
        norm = origin.norm().item()
        if norm > 0:
            moved = (weights[name].to("cpu", origin.dtype) - origin).norm().item()
            changes.append(moved / norm)
    return math.fsum(changes) / len(changes)


def _after(learned: int, plan: TaskPlan) -> str:
    return f"{learned:02d}-{plan.task.name}"


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
    ) -> None:
        self.recipe, self.plans, self.records = recipe, plans, suite.records
        self.language_model, self.folder, self.observer = language_model, folder, observer
        self.benchmark = make_benchmark(suite.records)
        self.steps = StepLog(observer)
        self.loop = Loop(
            language_model=language_model,
            plans=plans,
            recipe=recipe,
            strategies=strategies,
            auxiliary=suite.auxiliary,
            engine=engine,
            plugins=[self.steps],
        )
        self.ranks = self.loop.engine.ranks
        empty: list[None] = [None] * len(plans)
        self.scores: list[list[float | None]] = [list(empty) for _ in plans]
        self.metrics: list[list[Any]] = [list(empty) for _ in plans]
        self.losses: list[list[float | None]] = [list(empty) for _ in plans]
        self.initial: list[float | None] | None = None
        self.initial_losses: list[float | None] | None = None
        self.distances: list[float] = []
        self.learned = 0
        self.seconds = {"training": 0.0, "evaluation": 0.0}

    def learn(self) -> dict[str, Any]:
        """Learn and score everything; return the results.

        Raises:
            TrainingError: training diverged; what was measured is in the folder.
        """
        try:
            return self._learn()
        finally:
            self.folder.write_metrics(self.steps.rows)

    def _learn(self) -> dict[str, Any]:
        folder, plans = self.folder, self.plans
        self.observer.started(self.recipe, plans, folder.path)
        start: dict[str, torch.Tensor] = {}
        if self.recipe.evaluation.distance:
            with self.loop.engine.whole() as module:
                if self.ranks.first:
                    weights = self.loop.weights(module)
                    start = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
        self._write()
        if self.recipe.evaluation.initial:
            initial: list[float | None] = [None] * len(plans)
            losses: list[float | None] = [None] * len(plans)
            with self._timed("evaluation"), self.loop.evaluating() as model:
                self._evaluate(model, 0, range(len(plans)), initial, [None] * len(plans), losses)
            self.initial, self.initial_losses = initial, losses
        self._write()
        for i, (plan, experience) in enumerate(
            zip(plans, self.benchmark.train_stream, strict=True)
        ):
            folder.log.info("learning %s", plan.task.name)
            with self._timed("training"):
                self.loop.train(experience, eval_streams=[])
            self.learned = i + 1
            folder.write_record(_after(self.learned, plan), self._records())
            tested = range(len(plans)) if self.recipe.evaluation.tasks == "all" else range(i + 1)
            row = self.scores[i], self.metrics[i], self.losses[i]
            with self._timed("evaluation"), self.loop.evaluating() as model:
                if start:
                    self.distances.append(distance(self.loop.weights(model.module), start))
                self._evaluate(model, i + 1, tested, *row)
            self.observer.measured(self._write())
        if self.recipe.save_model:
            self._save_model()
        results = self._write()
        if self.ranks.first:
            self._draw(results)
        self.observer.finished(results, folder.path)
        folder.log.info("finished: OP %.2f", results["op"][-1])
        return results | {"folder": str(folder.path)}

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - began

    def _evaluate(
        self,
        language_model: LanguageModel,
        learned: int,
        tested: Sequence[int],
        scores: list[float | None],
        metrics: list[Any],
        losses: list[float | None],
    ) -> None:
        """Answer and score the tasks in `tested`, and fill one row of each matrix."""
        settings = self.recipe.evaluation
        after = _after(learned, self.plans[learned - 1]) if learned else "00-initial"
        for j in tested:
            plan = self.plans[j]
            rows = self.records[plan.task.name][settings.split]
            encoder = encoder_for(self.language_model.tokenizer, plan, self.recipe)
            self.observer.answering(plan, len(rows), learned)
            prompts = [row["prompt"] for row in rows]
            references = [row["answer"] for row in rows]
            answers = answer(
                language_model,
                encoder,
                prompts,
                settings,
                seed=self.recipe.seed + 1000 * learned + j,
                advance=self.observer.answered,
                ranks=self.ranks,
            )
            texts = mark_unfinished(
                [a.text for a in answers], [a.finished for a in answers], references
            )
            metrics[j] = score(plan.task, texts, references, prompts)
            scores[j] = metrics[j][plan.task.headline]
            if settings.losses:
                losses[j] = self._loss(language_model, plan, encoder, rows)
            self.folder.write_predictions(
                after,
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
            self.folder.log.info("after %s: %s %s", after, plan.task.name, metrics[j])

    def _loss(
        self,
        language_model: LanguageModel,
        plan: TaskPlan,
        encoder: Encoder,
        rows: Sequence[Record],
    ) -> float:
        settings = self.recipe.evaluation
        loss = answer_loss(language_model, encoder, rows, settings, self.ranks)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss on {plan.task.name} is {loss}: the model is broken. Lower optimizer.lr"
            )
        return loss

    def _write(self) -> dict[str, Any]:
        """Write `results.json` as far as the run has come, and return it."""
        tasks = [plan.task.name for plan in self.plans]
        matrix = ResultMatrix(tasks, self.scores, self.initial)
        learned = range(1, self.learned + 1)
        complete = self.learned == len(tasks)
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "strategy": "+".join(s.name for s in self.loop.strategies),
            "seed": self.recipe.seed,
            "suite": self.recipe.data.suite,
            "model": self.recipe.model.path,
            "protocol": self.recipe.protocol,
            "split": self.recipe.evaluation.split,
            "tasks": tasks,
            "headline": {plan.task.name: plan.task.headline for plan in self.plans},
            "examples": {
                task: {split: len(rows) for split, rows in self.records[task].items()}
                for task in tasks
            },
            "scores": self.scores,
            "initial": self.initial,
            "op": [matrix.op(after=t) for t in learned],
            "bwt": [matrix.bwt(after=t) if t > 1 else None for t in learned],
            "learned": [matrix.learned(after=t) for t in learned],
            "forgetting": matrix.forgetting() if complete and len(tasks) > 1 else None,
            "forward_transfer": self._forward_transfer(matrix) if complete else None,
            "metrics": self.metrics,
            "losses": self.losses if self.recipe.evaluation.losses else None,
            "initial_losses": self.initial_losses if self.recipe.evaluation.losses else None,
            "distance": self.distances or None,
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
            "finished": complete,
        }
        self.folder.write_json("results.json", results)
        return results

    def _forward_transfer(self, matrix: ResultMatrix) -> float | None:
        """Forward transfer needs R[i-1, i], which only `evaluation.tasks: all` measures."""
        if self.recipe.evaluation.tasks != "all" or self.initial is None or len(self.plans) < 2:
            return None
        return matrix.forward_transfer()

    def _save_model(self) -> None:
        target = self.folder.path / "model"
        partial = self.folder.path / "model.partial"
        with self.loop.engine.whole() as module:
            if not self.ranks.first:
                return
            module.save_pretrained(partial, state_dict=self.loop.weights(module))
            self.language_model.tokenizer.save_pretrained(partial)
            shutil.move(partial, target)
            for strategy in self.loop.strategies:
                strategy.export(self.loop, module, self.folder.path)

    def _records(self) -> dict[str, Any]:
        return {s.name: record for s in self.loop.strategies if (record := s.record())}

    def _draw(self, results: Mapping[str, Any]) -> None:
        figures = self.folder.path / "figures"
        figures.mkdir(exist_ok=True)
        parsed = parse_results(dict(results), self.folder.path / "results.json")
        heat_map(parsed, figures / "matrix.png")
        curves([parsed], figures / "curves.png")
