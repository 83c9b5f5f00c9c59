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

    @abstractmethod
    def step(self) -> None:
        """Let the optimizer take its step, and forget the gradients."""

    def fresh_optimizer(self) -> None:
        """Forget the optimizer's moments."""
        self.optimizer.state.clear()

    @abstractmethod
    def whole(self) -> AbstractContextManager[Any]:
        """Give a module with whole weights on every rank, for as long as the context lasts."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return this rank's weights and moments: tensors, and values that JSON can hold."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned, on as many ranks.

        Raises:
            ValueError: it is of other parameters.
        """

    def close(self) -> None:  # noqa: B027, as not every engine holds anything
        """Let go of what the engine holds."""


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
