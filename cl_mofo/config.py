"""A recipe: everything that decides what a run does, typed and checked before anything is loaded.

A recipe is a YAML mapping. Its values win over those of its protocol, which win over the defaults
below. A strategy's settings stand under the strategy's name (`mofo: {update_fraction: 0.1}`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

PositiveInt = Annotated[int, Field(ge=1, strict=True)]


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number was expected")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


def _per_task(value: Any) -> Any:
    numbers = value.values() if isinstance(value, dict) else [value]
    for number in numbers:
        if value is not None and (type(number) is not int or number < 1):
            raise ValueError(
                "a whole number of at least 1, or a mapping from task names to such numbers, was "
                "expected"
            )
    return value


PerTask = Annotated[int | dict[str, int] | None, BeforeValidator(_per_task)]
"""One number for all tasks, or a mapping from task names to numbers."""

TINY = "tiny"
"""The name of the embedded model."""
EMBEDDED = "trace-mini"
"""The name of the embedded suite; its tasks are those of `trace`."""


SWEEP = "sweep"
"""The recipe key under which a list of runs stands (`cl_mofo.expansion`)."""


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change once set."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(Section):
    """The causal language model to fine-tune."""

    path: str = "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
    """A folder, a hub name, or `tiny` for the embedded model."""
    revision: str | None = None
    """The hub revision to load."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the forward and backward passes compute in; weights are float32 always. `auto` is
    bfloat16 on CUDA and float32 on a CPU."""
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    """Allow a hub model to run its own code. Leave it off unless you have read that code."""


class DataConfig(Section):
    """Where the records come from, and how many are used."""

    suite: str = "trace"
    """`trace`, `trace-mini` (embedded), or the suite of your own tasks."""
    path: str | None = None
    """The suite's folder, `<path>/<task>/{train,eval,test}.json`; environment variables expand."""
    train_limit: PositiveInt | None = None
    eval_limit: PositiveInt | None = None
    test_limit: PositiveInt | None = None
    """The first so many rows of each task's split; `train_limit` also of rows of no task (Lima)."""
    train_share: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Of each task's training rows, and of rows of no task, a random share (0.1 is a tenth), drawn
    before `train_limit` counts."""
    share_seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    """What determines that draw, whatever the run's own seed is."""
    prose: str | None = None
    """A UTF-8 text that no task is about: the model's loss on it is recorded before training and
    after each task. Environment variables expand."""
    prose_tokens: Annotated[int, Field(ge=2, strict=True)] = 8192
    """The first so many tokens of that text are read."""


class TasksConfig(Section):
    """Which tasks, in which order, and what overrides their own epochs and budgets.

    `epochs`, `prompt_tokens` and `answer_tokens` are one number for all tasks, or a mapping from
    task names to numbers.
    """

    only: tuple[str, ...] | None = None
    epochs: PerTask = None
    prompt_tokens: PerTask = None
    answer_tokens: PerTask = None

    @field_validator("only", mode="before")
    @classmethod
    def _listed(cls, names: Any) -> Any:
        if names is not None and not isinstance(names, (list, tuple)):
            raise ValueError("a list of task names was expected, as in [FOMC, Py150]")
        return names

    @field_validator("only")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(names) == 0:
            raise ValueError("name at least one task, or leave the key out")
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a task is named twice")
        return names


Beta = Annotated[Number, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """The optimizer, its schedule, and the batch it steps on."""

    lr: Annotated[Number, Field(gt=0)] = 1e-5
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: Annotated[Number, Field(gt=0)] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """Decoupled decay of everything but norms: the authors' rule, for every strategy."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls within each task, to zero (cosine, linear) or not at all."""
    warmup_ratio: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of a task's steps over which the learning rate rises linearly from zero."""
    batch_size: PositiveInt = 64
    """Examples per optimizer step, over all devices together."""
    max_grad_norm: Annotated[Number, Field(gt=0)] | None = 1.0
    """Clip the global gradient norm to this; null does not clip."""
    reset: bool = False
    """Start each task with a fresh optimizer state; the default carries it across tasks."""


class TrainingConfig(Section):
    """How a step is computed; only `tokenisation`, `loss` and `max_skipped_steps` change what is
    learned."""

    micro_batch_size: PositiveInt = 8
    """What one forward pass on one device takes at most: as many tokens as so many of the step's
    longest examples, or so many examples where they are padded; gradients accumulate up to
    `optimizer.batch_size`. With `loss: micro_batches` always so many examples."""
    packing: bool = True
    """Let examples follow one another in a row, without padding, each seeing only itself: the same
    loss and gradient up to rounding. A comparison at the start shows whether the model can; if it
    cannot, the run says so and pads."""
    group_by_length: bool = False
    """Draw batches of similar lengths; the batches are shuffled, their members are alike."""
    tokenisation: Literal["separate", "joint"] = "separate"
    """Prompt and answer apart (the prompt's tokens are the same in training and inference), or
    jointly as TRACE does."""
    loss: Literal["tokens", "micro_batches"] = "tokens"
    """Mean over the supervised tokens of the batch, or mean over micro-batches of their means."""
    max_skipped_steps: Annotated[int, Field(ge=0, strict=True)] = 10
    """Steps of one task that may be skipped because their loss or gradient is not finite; one more
    stops the run, and so does half of a task's steps."""


class EngineConfig(Section):
    """What computes: one device, or several over which the model is spread (docs/scale.md)."""

    kind: Literal["torch", "deepspeed", "fsdp"] = "torch"
    """`torch` is one device; the others share out the work among the processes of a launcher."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_number)] = 2
    """What DeepSpeed spreads: 1 the moments, 2 the gradients too, 3 the weights too; 0 nothing."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What stays in the host's memory: moments and float32 weights, or all weights too."""
    compile: bool = False
    """Compile the training passes (`torch.compile`): the same loss and gradient up to rounding, and
    faster steps after a minute or more of compiling. Examples are then padded, not packed. It needs
    `kind: torch`, and on a CPU a C++ compiler."""
    timeout_minutes: Annotated[Number, Field(gt=0, le=10080)] = 30.0
    """How long a process waits for another before all give up. The others also wait while the first
    draws and saves, so allow for what that takes."""

    @model_validator(mode="after")
    def _possible(self) -> EngineConfig:
        default = type(self).model_fields["zero_stage"].default
        if self.kind != "deepspeed" and self.zero_stage != default:
            raise ValueError(
                f"engine.zero_stage: {self.zero_stage} needs engine.kind=deepspeed, and the kind "
                f"is {self.kind}"
            )
        if self.compile and self.kind != "torch":
            raise ValueError(
                f"engine.compile: needs engine.kind=torch, and the kind is {self.kind}"
            )
        if self.offload == "none":
            return self
        if self.kind == "torch":
            raise ValueError(f"engine.offload: {self.offload} needs engine.kind=deepspeed or fsdp")
        if self.kind == "fsdp" and self.offload == "optimizer":
            raise ValueError(
                "engine.kind: fsdp moves weights and optimizer to the host together; give "
                "engine.offload=parameters, or engine.kind=deepspeed"
            )
        least = 3 if self.offload == "parameters" else 1
        if self.kind == "deepspeed" and self.zero_stage < least:
            raise ValueError(
                f"engine.offload: {self.offload} needs engine.zero_stage {least} or more, not "
                f"{self.zero_stage}"
            )
        return self


class EvaluationConfig(Section):
    """What is scored after each task, and how answers are decoded."""

    split: Literal["test", "eval"] = "test"
    """What is answered and scored. Choose hyperparameters on `eval`, never on `test`."""
    tasks: Literal["seen", "all", "ends"] = "seen"
    """After each task score the tasks learned so far, or all; or (`ends`) that one alone, and all
    after the last: what the last OP and BWT need, of eight tasks 15 test sets in place of 36.
    """
    initial: bool = False
    """Score every task before any training; an untrained model runs into every answer budget."""
    losses: bool = True
    """Also record the mean loss per answer token on the test sets."""
    distance: bool = True
    """Also record the distance to the initial weights (keeps a copy of them on the host)."""
    metrics: Literal["all", "headline"] = "all"
    """All metrics of each task, or its headline one alone: then an answer is generated only until
    its task says that the headline metric is settled. The headline scores are the same."""
    cache: bool = True
    """Take answers from the user's cache where the same weights have answered the same test set in
    the same way, and keep them there (docs/architecture.md)."""
    batch_size: PositiveInt = 16
    """A batch has at most as many tokens as so many examples of a task's full budgets; of short
    prompts, more are answered at a time."""
    decoding: Literal["greedy", "sample"] = "greedy"
    temperature: Annotated[Number, Field(gt=0)] = 1.0
    top_k: PositiveInt | None = None
    """Sample among so many likeliest tokens; null among all."""
    skip_special_tokens: bool = False
    """Drop special tokens from answers; by default they stay visible, and wrong."""


class CheckpointConfig(Section):
    """When a run saves what it needs to go on (docs/reliability.md): always after a task, and here.

    Nothing of this changes what is computed.
    """

    every_minutes: Annotated[Number, Field(ge=0)] | None = 10.0
    """Save when so many minutes have passed since the last time; null for no regard of time."""
    every_steps: PositiveInt | None = None
    """Save also after so many optimizer steps, counted over all tasks."""
    keep: PositiveInt = 2
    """How many of the newest to keep. With 2, one that turns out to be damaged loses little."""


class Recipe(Section):
    """A whole run. `strategies` holds the settings of every known strategy, by name."""

    protocol: Literal["default", "trace-v1"] = "default"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    tasks: TasksConfig = TasksConfig()
    strategy: str = "mofo"
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 42
    deterministic: bool = False
    """Ask CUDA for the same bits every time; a CPU gives them always."""
    save_model: bool = True
    """Save the final weights in the run folder."""
    imports: tuple[Path, ...] = ()
    """Python files that bring tasks or strategies of one's own. They are run: from a recipe file
    only if the command line names them too."""
    strategies: Mapping[str, Any] = {}


PROTOCOLS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "default": {},
    "trace-v1": {
        "training": {"tokenisation": "joint", "loss": "micro_batches", "micro_batch_size": 4},
        "optimizer": {"schedule": "constant"},
        "tasks": {"prompt_tokens": 1024, "answer_tokens": 512},
        "evaluation": {
            "decoding": "sample",
            "temperature": 0.1,
            "top_k": 50,
            "batch_size": 4,
            "skip_special_tokens": True,
        },
    },
}
"""What each protocol sets; docs/protocols.md says why."""
