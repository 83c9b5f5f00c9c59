"""Ways to train on the same batches: a plain loop as TRACE's, Hugging Face's Trainer, and ours.

All start from the same weights and use the same precision, optimizer, learning rate and clipping,
and a step's loss is the mean over its supervised tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.setting import Setting
from benchmarks.timing import synchronize
from cl_mofo.compat import repair_torchvision
from cl_mofo.data.batches import IGNORED
from cl_mofo.data.records import Record
from cl_mofo.data.stages import Stage
from cl_mofo.data.tokenise import Example
from cl_mofo.strategy import Strategy

repair_torchvision()

from avalanche.core import SupervisedPlugin  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

Batch = list[Example]
Inputs = Mapping[str, Tensor]


@dataclass
class Work:
    """What a contender has done for one task."""

    losses: list[float] = field(default_factory=list)
    computed: int = 0
    """Positions that went through the model, padding included."""
    real: int = 0
    """Tokens that are no padding."""
    seconds: float = 0.0
    gib: float | None = None
    """Of a GPU's memory, the most that was in use above what was when the task began."""


def batches(setting: Setting, task: int) -> list[Batch]:
    """Return a task's batches, as our loop draws them."""
    plan = setting.plans[task]
    loop = setting.loop("sequential", language_model=setting.language_model)
    rows = setting.suite.records[plan.task.name]["train"]
    stage = Stage("task", loop.encoded(rows, plan), 1)
    return stage.batches(setting.recipe.optimizer.batch_size, (setting.recipe.seed, task, 0))


def padded(examples: Sequence[Example], pad: int, *, left: bool) -> dict[str, Tensor]:
    """Return tensors of examples padded to the longest, labels only on answers."""
    width = max(map(len, examples))
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in examples:
        ids, room = list(example.ids), width - len(example)
        labels = [IGNORED] * (len(ids) - example.supervised) + ids[-example.supervised :]
        for name, row, fill in (
            ("input_ids", ids, pad),
            ("attention_mask", [1] * len(ids), 0),
            ("labels", labels, IGNORED),
        ):
            columns[name].append([fill] * room + row if left else row + [fill] * room)
    return {name: torch.tensor(rows) for name, rows in columns.items()}


class Contender(Protocol):
    """What learns one task after another."""

    def learn(self, task: int, drawn: Sequence[Batch]) -> Work:
        """Take the steps of a task; leave `seconds` at 0 if all of the call counts."""


class Plain:
    """A plain loop over micro-batches that are not sorted, padded on the left, with all logits.

    Args:
        setting: the model and the tasks.
        dtype: what is computed in.
        collate: from the records of a micro-batch to its tensors, instead of our tokens.
    """

    def __init__(
        self,
        setting: Setting,
        dtype: str,
        collate: Callable[[Sequence[Record]], Inputs] | None = None,
    ) -> None:
        self.setting, self.collate = setting, collate
        self.model = setting.model(dtype)
        self.optimizer = Strategy().make_optimizer(
            list(self.model.module.named_parameters()), setting.recipe.optimizer
        )
        self.model.module.train()

    def learn(self, task: int, drawn: Sequence[Batch]) -> Work:
        work, limit = Work(), self.setting.recipe.optimizer.max_grad_norm
        for batch in drawn:
            passes = [self._inputs(task, part) for part in self._parts(batch)]
            supervised = sum(int((each["labels"][:, 1:] != IGNORED).sum()) for each in passes)
            total = 0.0
            for inputs in passes:
                work.computed += inputs["input_ids"].numel()
                work.real += int(inputs["attention_mask"].sum())
                there = {name: each.to(self.model.device) for name, each in inputs.items()}
                with self.model.autocast():
                    loss = self.model.module(**there, num_items_in_batch=supervised).loss
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(self.model.module.parameters(), limit or float("inf"))
            self.optimizer.step()
            self.optimizer.zero_grad()
            work.losses.append(total)
        return work

    def _parts(self, batch: Batch) -> list[Batch]:
        size = self.setting.recipe.training.micro_batch_size
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def _inputs(self, task: int, examples: Batch) -> Inputs:
        if self.collate is None:
            return padded(examples, self.model.tokenizer.eos_token_id, left=True)
        return self.collate([self._record(task, example) for example in examples])

    def _record(self, task: int, example: Example) -> Record:
        plan = self.setting.plans[task]
        rows = self.setting.suite.records[plan.task.name]["train"]
        if not hasattr(self, "_known") or self._known[0] != task:
            loop = self.setting.loop("sequential", language_model=self.setting.language_model)
            found = zip(loop.encoded(rows, plan), rows, strict=True)
            self._known = task, {known.ids: row for known, row in found}
        return self._known[1][example.ids]


class HuggingFace:
    """`transformers.Trainer`, its batches padded on the right as its collators do.

    Its time is that of its steps: making a Trainer for a task takes long, but once.
    """

    def __init__(self, setting: Setting, dtype: str) -> None:
        self.setting = setting
        self.model = setting.model(dtype)
        self.optimizer = Strategy().make_optimizer(
            list(self.model.module.named_parameters()), setting.recipe.optimizer
        )

    def learn(self, task: int, drawn: Sequence[Batch]) -> Work:
        recipe, work = self.setting.recipe, Work()

        class InOrder(Trainer):
            def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
                return SequentialSampler(self.train_dataset)

        def collate(examples: list[Example]) -> dict[str, Tensor]:
            made = padded(examples, self.model.tokenizer.eos_token_id, left=False)
            work.computed += made["input_ids"].numel()
            work.real += int(made["attention_mask"].sum())
            return made

        class Clock(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                synchronize()
                self.began = time.perf_counter()

            def on_train_end(self, *args: Any, **kwargs: Any) -> None:
                synchronize()
                work.seconds = time.perf_counter() - self.began

        size, micro = recipe.optimizer.batch_size, recipe.training.micro_batch_size
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=min(micro, size),
                gradient_accumulation_steps=-(-size // micro),
                num_train_epochs=1,
                lr_scheduler_type="constant",
                learning_rate=recipe.optimizer.lr,
                max_grad_norm=recipe.optimizer.max_grad_norm or 0.0,
                bf16=self.model.compute_dtype == torch.bfloat16,
                use_cpu=self.model.device.type == "cpu",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                seed=recipe.seed,
            )
            trainer = InOrder(
                self.model.module,
                arguments,
                data_collator=collate,
                train_dataset=[example for batch in drawn for example in batch],
                optimizers=(self.optimizer, None),
                callbacks=[Clock()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        trainer.accelerator.unwrap_model(self.model.module, keep_fp32_wrapper=False)
        work.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return work


class Counted(SupervisedPlugin):
    """Notes what our loop computes."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.work.losses.append(strategy.step_loss.item())
        self.work.computed += strategy.step_positions
        self.work.real += strategy.step_tokens


class Ours:
    """`cl_mofo.loop.Loop` with a strategy; its time is all that it does for a task."""

    def __init__(self, setting: Setting, dtype: str, strategy: str, *assignments: str) -> None:
        self.counted = Counted()
        self.loop = setting.loop(
            strategy,
            assignments,
            language_model=setting.model(dtype),
            plugins=[self.counted],
        )
        self.experiences = setting.experiences()

    def learn(self, task: int, drawn: Sequence[Batch]) -> Work:
        self.counted.work = Work()
        self.loop.train(self.experiences[task], eval_streams=[])
        return self.counted.work
