"""The engine on PyTorch's FSDP2 (`fully_shard`): weights, gradients and moments are all spread.

Each tensor is split along its first dimension. A layer's weights are gathered while it computes,
forward and backward, and its gradients are summed up and spread after every backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.nn import Parameter

from cl_mofo.config import EngineConfig
from cl_mofo.engine.base import Copy, MakeOptimizer, Moments, fill, moments_of
from cl_mofo.engine.ranks import Ranks
from cl_mofo.engine.shared import SpreadEngine
from cl_mofo.model import LanguageModel
from cl_mofo.optim.shards import local


class FSDPEngine(SpreadEngine):
    """Everything spread, tensor by tensor."""

    def __init__(self, config: EngineConfig, ranks: Ranks) -> None:
        super().__init__(ranks)
        self.config = config

    def prepare(self, language_model: LanguageModel, make_optimizer: MakeOptimizer) -> None:
        """Shard every layer and then the rest, and make the optimizer over the shards."""
        self.module = language_model.module
        self._copy = Copy(self.module)
        self._device = language_model.device
        mesh = init_device_mesh(language_model.device.type, (self.ranks.count,))
        offload = self.config.offload == "parameters"
        pinned = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        policy = pinned if offload else OffloadPolicy()
        for layer in layers(self.module):
            fully_shard(layer, mesh=mesh, offload_policy=policy)
        fully_shard(self.module, mesh=mesh, offload_policy=policy)
        # Avalanche moves its model to its device; these shards stay where FSDP has put them.
        self.module.to = lambda *args, **kwargs: self.module
        named = self.module.named_parameters()
        self._trainable = {name: p for name, p in named if p.requires_grad}
        self.optimizer = make_optimizer(list(self._trainable.items()))

    @property
    def trainable(self) -> Mapping[str, Parameter]:
        """The trained parameters by name, as DTensors."""
        return self._trainable

    def backward(self, loss: Tensor) -> None:
        """Add the gradient; FSDP takes the ranks' mean, and the batch's is their sum."""
        torch.autograd.backward(loss * self.ranks.count)

    def parameters(self) -> dict[str, Tensor]:
        """Return this rank's rows of the trained weights."""
        return {name: local(parameter.detach()) for name, parameter in self._trainable.items()}

    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's rows of the gradients of what the step moves."""
        return {
            name: local(parameter.grad)
            for name, parameter in self._trainable.items()
            if parameter.grad is not None and name not in self.frozen
        }

    def discard_gradients(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def freeze(self, names: frozenset[str]) -> None:
        """Let steps move all but these; their gradients are computed, and dropped."""
        self.frozen = names

    def step(self, unless: Tensor | None = None) -> None:
        """Let the optimizer take its step."""
        for name in self.frozen:
            self._trainable[name].grad = None
        self.optimizer.step()
        self.discard_gradients()

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield name, parameter.detach().to(self._device).full_tensor()

    def _moments(self) -> dict[str, Moments]:
        return moments_of(self.optimizer, self._trainable)

    def _make_moments(self, moments: Mapping[str, Moments]) -> None:
        fill(self.optimizer, self._trainable, moments)


def layers(module: Any) -> list[Any]:
    """Return a model's blocks: the members of its longest list of modules that is in no other."""
    lists = {n: p for n, p in module.named_modules() if isinstance(p, torch.nn.ModuleList)}
    outer = [p for n, p in lists.items() if not any(n.startswith(f"{other}.") for other in lists)]
    return list(max(outer, key=len, default=()))
