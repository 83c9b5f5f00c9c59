"""EWC: hold back the weights that mattered to earlier tasks (arXiv 1612.00796).

After task k, with weights theta_k, the diagonal Fisher information of its examples is

    F_k = 1/n sum_i (d loss_i / d theta)^2,     loss_i: example i's mean loss per supervised token,

one example at a time, dropout off. While later tasks are learned, the loss has the further term

    strength/2 * sum_k decay^(K-k) F_k (theta - theta_k)^2,          K tasks learned so far

(Kirkpatrick et al., PNAS 2017, equation 3; `decay` below 1 forgets gradually as Schwarz et al.,
ICML 2018, do, but keeps each task's own anchor). All tasks together need only S = sum_k F_k and the
mean anchor a = sum_k F_k theta_k / S: the term's gradient is strength * S (theta - a), added once
per step, before clipping.

`variant: trace` is what TRACE's code (2310.06762) does: F gathers the squared gradients of the
training steps themselves, the penalty's included, over their number per epoch; the only anchor is
the last task's weights. A penalty that feeds on itself can run away (`ewc.ratio` then grows without
bound): lower `strength` or the learning rate.

With MoFO the penalty is part of the momentum that chooses what moves, so an entry may be chosen to
be pulled back. With LoRA it is on the adapters.

Cost, P trained parameters: 8P bytes (on the host with `offload`, 8P over the bus a step), 4P more
in the Fisher pass; a step, some reads of 3P; a task, min(n, `fisher_examples`) forward and backward
passes of one example (and as many forward ones for labels drawn from the model).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field

from cl_mofo.errors import TrainingError
from cl_mofo.model import without_dropout
from cl_mofo.parts import Parts
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    from cl_mofo.data.batches import MicroBatch
    from cl_mofo.loop import Loop


def accumulate(
    fisher: torch.Tensor,
    anchor: torch.Tensor,
    new_fisher: torch.Tensor,
    theta: torch.Tensor,
    decay: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a task to the sum of Fisher information and to its weighted mean of anchors.

    Args:
        fisher: sum over the tasks before, at least 0, of any shape.
        anchor: their mean weights, weighted by Fisher information; like all below, of that shape.
        new_fisher: the task's own, at least 0.
        theta: the weights that the task ended with.
        decay: weight of the tasks before, in [0, 1].

    Returns:
        sum and anchor with the task; where the sum is 0 the anchor is `theta`.
    """
    total = fisher * decay + new_fisher
    share = (new_fisher / total).masked_fill_(total == 0, 1.0)
    return total, anchor.lerp(theta, share)


def penalty_gradient(
    theta: torch.Tensor, fisher: torch.Tensor, anchor: torch.Tensor, strength: float
) -> torch.Tensor:
    """Return the gradient of strength/2 * sum(fisher * (theta - anchor)^2) by `theta`."""
    return (theta - anchor).mul_(fisher).mul_(strength)


def sampled_labels(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw labels from a model's own distribution, by inversion.

    Args:
        logits: [..., vocabulary].
        uniform: [...], in [0, 1), one draw for each label.
    """
    cumulative = logits.double().softmax(-1).cpu().cumsum(-1)  # on CUDA no sum repeats to the bit
    chosen = uniform.double().cpu().unsqueeze(-1)
    drawn = torch.searchsorted(cumulative, chosen, right=True).squeeze(-1)
    return drawn.clamp(max=logits.shape[-1] - 1).to(logits.device)


class EWC(Strategy):
    """Hold weights back where earlier tasks depend on them."""

    name = "ewc"
    phases = frozenset({"penalty", "end"})
    long_end = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Args:
            strength: weight of the penalty, at least 0; TRACE's, for its variant, is 400. What it
                does depends on the Fisher information's scale: `ewc.ratio` in
                metrics.parquet, the norm of the penalty's gradient over that of the gradient it
                is added to, should be between 0.1 and 1.
            fisher_examples: rows of a task, drawn once, for its Fisher information; null takes all.
            decay: what the Fisher information so far is multiplied by after each task, in [0, 1].
            labels: "data" takes the squared gradient of the task's own answers (the empirical
                Fisher information), "model" that of answers drawn from the model, token by token.
            offload: keep Fisher information and anchor on the host.
            variant: "fisher", or TRACE's, in which no pass is made: the three settings that
                describe one must be left alone.
        """

        strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e3
        fisher_examples: Annotated[int, Field(ge=1)] | None = 1000
        decay: Annotated[float, Field(ge=0, le=1)] = 1.0
        labels: Literal["data", "model"] = "data"
        offload: bool = False
        variant: Literal["fisher", "trace"] = "fisher"

        def __post_init__(self) -> None:
            of_the_pass = ("fisher_examples", "decay", "labels")
            given = [
                name for name in of_the_pass if getattr(self, name) != getattr(EWC.Config, name)
            ]
            if self.variant == "trace" and given:
                raise ValueError(
                    f"the variant 'trace' makes no Fisher pass; leave {' and '.join(given)} out"
                )

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.fisher: dict[str, torch.Tensor] = {}
        self.anchor: dict[str, torch.Tensor] = {}
        self._record: dict[str, Any] = {}

    def on_gradients(self, loop: Loop) -> None:
        """Add the penalty's gradient; TRACE's variant then gathers the squares of the sum."""
        norms = []
        parameters, gradients = loop.parameters(), loop.gradients()
        for name, gradient in gradients.items():
            if name in self.anchor:
                theta = parameters[name]
                fisher = self.fisher[name].to(theta.device)
                anchor = self.anchor[name].to(theta.device)
                penalty = penalty_gradient(theta, fisher, anchor, self.config.strength)
                norms.append(torch.stack([penalty.norm(), gradient.norm()]))
                gradient.add_(penalty)
        finite = True
        if norms:
            squares = torch.stack(norms).square().sum(dim=0)
            held_back, learned = loop.over_shards(squares).sqrt().tolist()
            loop.figures["ewc.ratio"] = held_back / learned if learned else math.inf
            finite = math.isfinite(held_back + learned)
        if self.config.variant == "trace" and finite:  # otherwise the loop skips the step
            for name, gradient in gradients.items():
                squares = gradient.square().div_(_steps_per_epoch(loop))
                if name in self.fisher:
                    squares += self.fisher[name].to(gradient.device)
                self._keep(self.fisher, name, squares)

    def after_experience(self, loop: Loop) -> None:
        """Measure the task's Fisher information and add it, with the weights as its anchor."""
        if self.config.variant == "trace":
            parameters = loop.parameters()
            for name in self.fisher:
                self._keep(self.anchor, name, parameters[name].clone())
            return
        new_fisher = self._measured(loop)
        for name, theta in loop.parameters().items():
            new = new_fisher.pop(name)
            fisher, anchor = new, theta.clone()
            if name in self.fisher:
                before = self.fisher[name].to(theta.device), self.anchor[name].to(theta.device)
                fisher, anchor = accumulate(*before, new, theta, self.config.decay)
            self._keep(self.fisher, name, fisher)
            self._keep(self.anchor, name, anchor)

    def record(self) -> dict[str, Any]:
        """Return the Fisher pass's examples and the trace of what it measured."""
        return self._record

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of Fisher information and the anchor, by parameter."""
        return {"fisher": Parts(self.fisher), "anchor": Parts(self.anchor)}

    def home(self, device: torch.device) -> torch.device:
        """Return the host where the state stays there: the device may have no room for it."""
        return torch.device("cpu") if self.config.offload else device

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        for held, saved in ((self.fisher, state["fisher"]), (self.anchor, state["anchor"])):
            held.clear()
            for name, tensor in saved.items():
                self._keep(held, name, tensor)

    def _measured(self, loop: Loop) -> dict[str, torch.Tensor]:
        """Return the task's Fisher information; raise `TrainingError` if it is not finite."""
        fisher = {name: torch.zeros_like(theta) for name, theta in loop.parameters().items()}
        count = 0
        for batch in self._examples(loop):
            loop.replace_gradients([batch])
            count += 1
            for name, gradient in loop.gradients().items():
                fisher[name].addcmul_(gradient, gradient)
        loop.engine.discard_gradients()
        for squares in fisher.values():
            squares.div_(count)
        sums = torch.stack([squares.sum(dtype=torch.float64) for squares in fisher.values()])
        trace = loop.over_shards(sums.sum()).item()
        if not math.isfinite(trace):
            raise TrainingError(
                f"task {loop.plan.task.name}: the Fisher information of ewc is not finite. Compute "
                f"in float32 (model.compute_dtype), or lower optimizer.lr"
            )
        self._record = {"fisher_examples": count, "fisher_trace": trace}
        return fisher

    def _examples(self, loop: Loop) -> Iterator[MicroBatch]:
        """Yield the rows of the Fisher pass, each as a batch of its own, on the model's device."""
        generator = loop.generator("ewc")
        for index in generator.permutation(len(loop.examples))[: self.config.fisher_examples]:
            (batch,) = loop.micro_batches([loop.examples[index]])
            batch = batch.to(loop.device)
            if self.config.labels == "model":
                batch = _with_own_labels(loop, batch, generator.random(batch.supervised))
            yield batch

    def _keep(self, held: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> None:
        held[name] = tensor.to("cpu") if self.config.offload else tensor


def _steps_per_epoch(loop: Loop) -> float:
    task = loop.stages[0]
    return task.steps(loop.recipe.optimizer.batch_size) / task.epochs


def _with_own_labels(loop: Loop, batch: MicroBatch, uniform: Any) -> MicroBatch:
    """Return a batch of one example with labels drawn from the model in place of its own."""
    with torch.no_grad(), without_dropout(loop.model):
        logits, _ = loop.loss_on(batch)
    labels = batch.labels.clone()
    labels[0, batch.first :] = sampled_labels(logits[0], torch.from_numpy(uniform))
    return dataclasses.replace(batch, labels=labels)
