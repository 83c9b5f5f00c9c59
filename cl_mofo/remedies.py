"""Which recipe keys bring back memory, by what was under way when it ran out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_mofo.memory import HOST, Shortage, size

if TYPE_CHECKING:
    from cl_mofo.config import EngineConfig, Recipe
    from cl_mofo.data.tokenise import Encoder

WORTH_HALVING = 32
"""Fewest tokens of a prompt that are worth cutting to half."""


@dataclass(frozen=True)
class Remedies:
    """What helps a training run; only what the recipe has not yet done.

    Args:
        recipe: the run's.
        on_gpu: whether the model computes on one.
        adapters: whether only a part of the model's tensors is trained.
    """

    recipe: Recipe
    on_gpu: bool
    adapters: bool

    def computing(self, missing: Shortage, examples: int, prompt: int) -> list[str]:
        """Return what helps a forward and backward pass.

        Args:
            missing: what was.
            examples: how many of the longest have the tokens that went through the model at once,
                rounded up.
            prompt: most tokens that their prompts may have had.
        """
        if self._host_beside_gpu(missing):
            return self.holding(missing)
        training, ways = self.recipe.training, []
        if examples > 1:
            same = "optimizer.batch_size and, up to rounding, the result stay"
            if training.loss == "micro_batches":
                same = "training.loss=micro_batches then weighs examples a little otherwise"
            ways.append(
                f"training.micro_batch_size={examples // 2} (here the tokens of {examples} long "
                f"examples met; {same})"
            )
        if not self.recipe.model.gradient_checkpointing:
            ways.append(
                "model.gradient_checkpointing=true (the same result, a third more computing)"
            )
        if (half := prompt // 2) >= WORTH_HALVING:
            ways.append(
                f"tasks.prompt_tokens={half} (here up to {prompt}; what is cut is not seen)"
            )
        return ways + self._engine()

    def holding(self, missing: Shortage) -> list[str]:
        """Return what helps to hold weights, gradients, moments and what strategies keep."""
        if self._host_beside_gpu(missing):
            ways = ["fewer processes on this machine"]
            if self.recipe.engine.offload != "none":
                ways.append("engine.offload=none")
            if self.recipe.evaluation.distance:
                ways.append("evaluation.distance=false (which keeps a copy of the weights)")
            return ways
        ways = self._engine()
        if not self.adapters:
            ways.append("a strategy that trains adapters only (cl-mofo list strategies)")
        return ways

    def _host_beside_gpu(self, missing: Shortage) -> bool:
        return self.on_gpu and missing.device == HOST

    def _engine(self) -> list[str]:
        engine = self.recipe.engine
        if self.on_gpu:
            return _on_gpu(engine)
        if engine.kind == "torch":
            return ["engine.kind=fsdp, started on several machines, which then share the model"]
        return ["more machines, which share the model"]


def _on_gpu(engine: EngineConfig) -> list[str]:
    if engine.kind == "torch":
        return [
            "engine.kind=fsdp, started on several GPUs, which then share the model",
            "engine.kind=deepspeed engine.offload=optimizer, which moves the moments to the host",
        ]
    ways = ["more GPUs, which share the model"]
    if engine.offload == "parameters":
        return ways
    if engine.kind == "fsdp":
        return [*ways, "engine.offload=parameters"]
    if engine.offload == "none":
        stage = "" if engine.zero_stage else "engine.zero_stage=2 "
        ways.append(f"{stage}engine.offload=optimizer")
    return [*ways, "engine.zero_stage=3 engine.offload=parameters"]


def answering(batch_size: int, encoder: Encoder) -> Callable[[Shortage], list[str]]:
    """Return the advice where test examples go through the model.

    Args:
        batch_size: examples at once.
        encoder: whose budgets they have.
    """

    def advice(missing: Shortage) -> list[str]:
        ways = []
        if batch_size > 1:
            ways.append(f"evaluation.batch_size={batch_size // 2} (now {batch_size})")
        for key in ("prompt_tokens", "answer_tokens"):
            if (half := getattr(encoder, key) // 2) >= WORTH_HALVING:
                ways.append(f"tasks.{key}={half} (this changes what is measured)")
        return ways

    return advice


def moments(trained: int) -> str:
    """Say what an optimizer's two moments take, given the number of trained weights."""
    return f"the optimizer steps, whose moments take {size(8 * trained)} over all ranks together"


def loading(missing: Shortage) -> list[str]:
    """Return the advice where a model is loaded."""
    if missing.device == HOST:
        return ["fewer processes on this machine: each of them reads all weights, 4 bytes each"]
    return ["nothing else on that GPU: it takes all weights, 4 bytes each, whatever the engine"]
