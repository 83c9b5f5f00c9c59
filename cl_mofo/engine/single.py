"""The engine for one device: torch alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from cl_mofo.engine.base import Engine, MakeOptimizer, Moments, fill, moments_of
from cl_mofo.engine.ranks import Ranks
from cl_mofo.errors import UserError
from cl_mofo.model import LanguageModel

COMPILERS = ("torch._dynamo", "torch._inductor")
"""Where the errors of compiling come from."""

AS_SCALED = "_step_supports_amp_scaling"
"""By this torch's optimizers say that they read `found_inf`, which `torch.amp.GradScaler` sets."""


class SingleEngine(Engine):
    """Everything whole, on one device.

    Args:
        ranks: of the run: one.
        compiled: whether training passes are compiled; each shape is, as if it were any.
    """

    def __init__(self, ranks: Ranks | None = None, *, compiled: bool = False) -> None:
        super().__init__(ranks)
        self._compiled = compiled

    def prepare(self, language_model: LanguageModel, make_optimizer: MakeOptimizer) -> None:
        """Make the optimizer; the model is left as it is."""
        self.module = self._forward = language_model.module
        if self._compiled:
            self._forward = torch.compile(self.module, dynamic=True)
        named = self.module.named_parameters()
        self._trainable = {name: p for name, p in named if p.requires_grad}
        self._make_optimizer = make_optimizer
        self.optimizer = make_optimizer(list(self._trainable.items()))

    def forward(self, **inputs: Any) -> Any:
        """Run the model, compiled if that is wanted.

        Raises:
            UserError: it cannot be compiled.
        """
        try:
            return self._forward(**inputs)
        except Exception as error:
            if not type(error).__module__.startswith(COMPILERS):
                raise
            reason = next(iter(str(error).splitlines()), repr(error))
            raise UserError(
                f"engine.compile: torch cannot compile the model here: {reason}. Leave it out"
            ) from error

    @property
    def trainable(self) -> Mapping[str, Parameter]:
        """The trained parameters by name."""
        return self._trainable

    def parameters(self) -> dict[str, Tensor]:
        """Return the trained weights by name."""
        return {name: parameter.detach() for name, parameter in self._trainable.items()}

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of what the step moves."""
        return {n: p.grad for n, p in self._trainable.items() if p.grad is not None}

    def take_gradients(self) -> dict[str, Tensor]:
        """Return the gradients, which need no copy, and forget them."""
        taken = self.gradients()
        self.discard_gradients()
        return taken

    def discard_gradients(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def over_shards(self, tensor: Tensor) -> Tensor:
        """Return the tensor: there is but one part."""
        return tensor

    def norm(self) -> Tensor:
        """Return the Euclidean norm [] of all gradients together."""
        return get_total_norm(list(self.gradients().values()))

    @property
    def leaves_steps(self) -> bool:
        """Whether an accelerator computes, with an optimizer that takes torch's `found_inf`."""
        takes = hasattr(self.optimizer, "found_inf") or getattr(self.optimizer, AS_SCALED, False)
        device = next(iter(self._trainable.values())).device
        return device.type != "cpu" and takes

    def step(self, unless: Tensor | None = None) -> None:
        """Let the optimizer take its step; gradients stay until the next batch."""
        if unless is None:
            self.optimizer.step()
            return
        optimizer: Any = self.optimizer
        optimizer.grad_scale, optimizer.found_inf = None, unless.float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf

    def fresh_optimizer(self) -> None:
        """Make the optimizer anew."""
        self.optimizer = self._make_optimizer(list(self._trainable.items()))

    def whole(self) -> AbstractContextManager[Any]:
        """Give the module itself."""
        return nullcontext(self.module)

    def _moments(self) -> dict[str, Moments]:
        return moments_of(self.optimizer, self._trainable)

    def _make_moments(self, moments: Mapping[str, Moments]) -> None:
        fill(self.optimizer, self._trainable, moments)
