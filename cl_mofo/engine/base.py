"""What the loop asks of an engine: who owns weights, gradients and moments, and where they lie."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cl_mofo.engine.ranks import Ranks
from cl_mofo.model import LanguageModel
from cl_mofo.optim.shards import local
from cl_mofo.parts import Parts, Span

Moments = dict[str, Any]
"""What an optimizer keeps of a tensor, by its name for it."""
MakeOptimizer = Callable[[Sequence[tuple[str, Parameter]]], torch.optim.Optimizer]


class Engine(ABC):
    """Weights, gradients and moments of a model, on one device or spread over several.

    `parameters()` and `gradients()` have the same names, and under each name tensors of the same
    shape: the whole tensor on one device, elsewhere the part that this rank holds, perhaps none of
    it. What is computed entry by entry needs to know no more; what is summed over entries goes
    through `over_shards`. All ranks make the same calls in the same order.

    Args:
        ranks: the processes of the run.
    """

    holds_no_tensor_back: str | None = None
    """Why a step cannot leave some tensors and their moments as they are; None if it can."""

    module: Any
    """The model, as forward passes go through it."""
    optimizer: torch.optim.Optimizer
    """Whose groups have the learning rates."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.frozen: frozenset[str] = frozenset()

    @abstractmethod
    def prepare(self, language_model: LanguageModel, make_optimizer: MakeOptimizer) -> None:
        """Take a model, spread it, and make the optimizer over what it trains."""

    @property
    @abstractmethod
    def trainable(self) -> Mapping[str, Parameter]:
        """The trained parameters by name, as the module has them."""

    def forward(self, **inputs: Any) -> Any:
        """Run the model, for a backward pass to follow."""
        return self.module(**inputs)

    def micro_batch(self, *, last: bool) -> None:  # noqa: B027, as not every engine has to know
        """Hear that the next forward and backward pass is the last of a batch, or not."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a rank's share of the loss; shares add up over the ranks."""
        torch.autograd.backward(loss)

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Return the trained weights by name, as far as they lie here; without gradients."""

    @abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """Return the batch's gradients by name, as far as they lie here: of what a step moves.

        They may be changed in place, until `step`.
        """

    @abstractmethod
    def discard_gradients(self) -> None:
        """Forget the gradients."""

    def take_gradients(self) -> dict[str, Tensor]:
        """Return the gradients for the caller to keep, and forget them."""
        taken = {name: gradient.clone() for name, gradient in self.gradients().items()}
        self.discard_gradients()
        return taken

    def over_shards(self, tensor: Tensor) -> Tensor:
        """Return the sum, over all parts of the tensors, of what was summed over those here."""
        return self.ranks.total(tensor)

    def norm(self) -> Tensor:
        """Return the Euclidean norm [] of all gradients together."""
        parts = list(self.gradients().values())
        squares = torch.stack([torch.linalg.vector_norm(part) for part in parts]).square()
        return self.over_shards(squares.sum()).sqrt()

    def freeze(self, names: frozenset[str]) -> None:
        """Let steps move all but these, from now on."""
        self.frozen = names
        for name, parameter in self.trainable.items():
            parameter.requires_grad_(name not in names)

    @property
    def leaves_steps(self) -> bool:
        """Whether `step` takes `unless`, and the host would have to wait for what it says."""
        return False

    @abstractmethod
    def step(self, unless: Tensor | None = None) -> None:
        """Let the optimizer take its step, and forget the gradients.

        Args:
            unless: bool [], on the device; where it is true nothing changes. Only where the engine
                `leaves_steps`.
        """

    def fresh_optimizer(self) -> None:
        """Forget the optimizer's moments."""
        self.optimizer.state.clear()

    @abstractmethod
    def whole(self) -> AbstractContextManager[Any]:
        """Give a module with whole weights on every rank, for as long as the context lasts."""

    @property
    def spread(self) -> bool:
        """Whether each rank holds its own part of a tensor, and not all of it."""
        return False

    def spans(self) -> dict[str, Span]:
        """Return which entries of each trained tensor this rank holds."""
        sizes = {name: part.numel() for name, part in self.parameters().items()}
        below = self.ranks.gather(sizes)[: self.ranks.rank] if self.spread else []
        return {name: Span(sum(held[name] for held in below), size) for name, size in sizes.items()}

    @abstractmethod
    def _moments(self) -> dict[str, Moments]:
        """Return by name what the optimizer keeps of each trained tensor's part.

        Values are tensors of the part's shape, or one for the whole tensor, such as a counter.
        """

    @abstractmethod
    def _make_moments(self, moments: Mapping[str, Moments]) -> None:
        """Let the optimizer keep such values and no others; `_moments` then returns them."""

    def _written(self) -> None:  # noqa: B027, as not every engine has to know
        """Hear that what `parameters` returns has been written to."""

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's weights and moments: tensors, and values that JSON can hold."""
        parts = self.parameters()
        moments: dict[str, Parts] = {}
        others: dict[str, dict[str, Any]] = {}
        for name, kept in self._moments().items():
            for key, value in kept.items():
                of_entries = isinstance(value, Tensor) and value.shape == parts[name].shape
                (moments.setdefault(key, Parts()) if of_entries else others.setdefault(key, {}))[
                    name
                ] = value
        return {"model": Parts(parts), "moments": moments, "counters": others}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned, of the parts that this rank has now.

        Raises:
            ValueError: it is of other parameters.
        """
        parts = self.parameters()
        check_same(parts, state["model"])
        moments: dict[str, Moments] = {}
        for key, values in [*state["moments"].items(), *state["counters"].items()]:
            for name, value in values.items():
                moments.setdefault(name, {})[key] = value
        for values in state["moments"].values():
            check_same({name: parts[name] for name in values if name in parts}, values)
        self._make_moments(moments)
        with torch.no_grad():
            for name, part in parts.items():
                part.copy_(state["model"][name])
            for name, kept in self._moments().items():
                for key, value in kept.items():
                    # A tensor that no step has moved has none, but in a row with others zeros.
                    if isinstance(value, Tensor) and key in moments.get(name, {}):
                        value.copy_(moments[name][key])
        self._written()

    def close(self) -> None:  # noqa: B027, as not every engine holds anything
        """Let go of what the engine holds, after a run that ended on all ranks."""

    def abandon(self) -> None:  # noqa: B027, as not every engine changes anything
        """Take back what the engine changed of this process, however the run ended."""


class Copy:
    """A module like another, to be filled with whole weights for a while.

    It is made before the other is spread, and holds nothing but its buffers until it is filled.
    """

    def __init__(self, module: Any) -> None:
        hollow = {
            id(p): Parameter(p.new_empty(0), requires_grad=False) for p in module.parameters()
        }
        self._module = copy.deepcopy(module, dict(hollow))
        self._module.eval()

    @contextmanager
    def filled(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[Any]:
        """Give the module with these weights, by name; then empty it again."""
        own = dict(self._module.named_parameters())
        try:
            for name, weight in weights:
                own[name].data = weight
            yield self._module
        finally:
            for parameter in own.values():
                parameter.data = parameter.new_empty(0)


def moments_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter]
) -> dict[str, Moments]:
    """Return by name what an optimizer keeps of the parameters, as far as it lies here."""
    return {
        name: {key: local(value) for key, value in optimizer.state[parameter].items()}
        for name, parameter in parameters.items()
        if optimizer.state.get(parameter)
    }


def fill(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Parameter],
    moments: Mapping[str, Moments],
) -> None:
    """Let an optimizer keep values like these of the parameters, and no others.

    Those of a part's shape are zeros, to be copied to; all others are these.
    """
    optimizer.state.clear()
    for name, values in moments.items():
        parameter = parameters[name]
        part = local(parameter).shape
        optimizer.state[parameter] = {k: like(v, parameter, part) for k, v in values.items()}


def like(value: Any, parameter: Tensor, part: torch.Size) -> Any:
    """Return zeros of a parameter's shape for a value of its part's; any other value as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.shape == part:
        form = torch.contiguous_format
        return torch.zeros_like(parameter, dtype=value.dtype, memory_format=form)
    return value.to(parameter.device, copy=True)


def check_same(ours: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of tensors with saved ones.

    Raises:
        ValueError: they differ; copying would leave some out, or broadcast.
    """
    if differ := ours.keys() ^ saved.keys():
        raise ValueError(f"the state trains other parameters: {', '.join(sorted(differ)[:3])}")
    for name, tensor in ours.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(
                f"the state's {name} is {list(saved[name].shape)}, the model's {list(tensor.shape)}"
            )
