"""The only file that touches DeepSpeed's private attributes: where ZeRO keeps which part of what.

Stages 1 and 2 pack a group's tensors one behind the other and cut the row at equal lengths, one
for each rank; a cut may fall within a tensor. Stage 3 cuts every tensor into equal parts. In both
the optimizer is given one flat float32 tensor for each group, and is called group by group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cl_mofo.engine.base import fill, like, moments_of
from cl_mofo.errors import UserError
from cl_mofo.optim.shards import Piece, Shards

TESTED = "0.19"
"""The releases of DeepSpeed whose private attributes are known to be as they are read here."""


def compile_nothing(deepspeed: Any) -> None:
    """Keep DeepSpeed from compiling its collective in shared memory: gloo needs no compiler."""
    getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False


class Internals(ABC):
    """Where a stage of ZeRO keeps this rank's part of weights, gradients and moments.

    Args:
        engine: DeepSpeed's.
        trainable: the trained parameters by name.
        sizes: their numbers of entries.

    Raises:
        UserError: this release of DeepSpeed keeps them otherwise.
    """

    NEEDED: tuple[str, ...] = ()

    def __init__(
        self, engine: Any, trainable: Mapping[str, Parameter], sizes: Mapping[str, int]
    ) -> None:
        self.zero = engine.optimizer
        self.trainable: Mapping[str, Any] = trainable
        self.sizes = sizes
        absent = [name for name in self.NEEDED if not hasattr(self.zero, name)]
        try:
            found = {} if absent else self._found()
            faults = absent or self._faults(found)
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            faults = [repr(error)]
        if faults:
            raise UserError(
                f"DeepSpeed {version('deepspeed')} keeps its state otherwise than cl-mofo knows "
                f"({', '.join(faults[:3])}). Install deepspeed {TESTED}.*, or give "
                f"engine.kind=fsdp"
            )
        self._pieces = found

    @abstractmethod
    def _found(self) -> dict[int, tuple[Tensor, dict[str, Piece]]]:
        """Return for each group its flat tensor and the pieces in it by name."""

    def _faults(self, found: Mapping[int, tuple[Tensor, dict[str, Piece]]]) -> list[str]:
        names = [name for _, pieces in found.values() for name in pieces]
        faults = []
        if sorted(names) != sorted(self.trainable):
            faults.append("not every trained tensor has its piece")
        for flat, pieces in found.values():
            for piece in pieces.values():
                if piece.numel < 0 or piece.start + piece.numel > flat.numel():
                    faults.append(f"the piece of {piece.name} does not lie in its group")
        return faults

    def shards(self) -> dict[Tensor, Shards]:
        """Return what the flat tensors hold that the optimizer is given."""
        return {
            flat: Shards(tuple(pieces.values()), self._group())
            for flat, pieces in self._pieces.values()
        }

    def _group(self) -> Any:
        return torch.distributed.group.WORLD

    def parameters(self) -> dict[str, Tensor]:
        """Return this rank's part of the trained weights, flat, in float32."""
        found = {
            name: piece.of(flat.detach())
            for flat, pieces in self._pieces.values()
            for name, piece in pieces.items()
        }
        return {name: found[name] for name in self.trainable}

    @abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's part of the gradients, flat, as the step will read them."""

    @abstractmethod
    def discard_gradients(self) -> None:
        """Forget the gradients, as a step does at its end."""

    @abstractmethod
    def written(self) -> None:
        """Bring what was written into `parameters` to the module's weights."""

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
        """Return by name what the optimizer keeps of each tensor's part."""
        kept: dict[str, dict[str, Any]] = {}
        for flat, pieces in self._pieces.values():
            for key, value in optimizer.state.get(flat, {}).items():
                for name, piece in pieces.items():
                    of_parts = isinstance(value, Tensor) and value.shape == flat.shape
                    kept.setdefault(name, {})[key] = piece.of(value) if of_parts else value
        return kept

    def make_moments(
        self, optimizer: torch.optim.Optimizer, moments: Mapping[str, dict[str, Any]]
    ) -> None:
        """Let the optimizer keep such values of its flat tensors."""
        optimizer.state.clear()
        for flat, pieces in self._pieces.values():
            for name, piece in pieces.items():
                for key, value in moments.get(name, {}).items():
                    made = like(value, flat, torch.Size([piece.numel]))
                    optimizer.state[flat].setdefault(key, made)


class Whole(Internals):
    """Stage 0: every rank holds everything, and the module's parameters are the optimizer's."""

    def __init__(
        self, engine: Any, trainable: Mapping[str, Parameter], sizes: Mapping[str, int]
    ) -> None:
        self.engine = engine
        super().__init__(engine, trainable, sizes)

    def _found(self) -> dict[int, tuple[Tensor, dict[str, Piece]]]:
        return {
            i: (parameter, {name: Piece(name, 0, parameter.numel(), parameter.numel())})
            for i, (name, parameter) in enumerate(self.trainable.items())
        }

    def _group(self) -> Any:
        return None

    def parameters(self) -> dict[str, Tensor]:
        """Return the trained weights."""
        return {name: parameter.detach() for name, parameter in self.trainable.items()}

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of what the step moves."""
        return {n: p.grad for n, p in self.trainable.items() if p.grad is not None}

    def discard_gradients(self) -> None:
        """Forget the gradients."""
        self.engine.zero_grad()

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
        """Return by name what the optimizer keeps of each tensor."""
        return moments_of(optimizer, self.trainable)

    def make_moments(
        self, optimizer: torch.optim.Optimizer, moments: Mapping[str, dict[str, Any]]
    ) -> None:
        """Let the optimizer keep such values."""
        fill(optimizer, self.trainable, moments)

    def written(self) -> None:
        """Nothing: the parameters are what is computed with."""


class ZeRO12(Internals):
    """Stages 1 and 2."""

    NEEDED = (
        "averaged_gradients",
        "all_grad_tensors",
        "bit16_groups",
        "cpu_offload",
        "micro_step_id",
        "offload_gradient_dict",
        "param_names",
        "reset_cpu_buffers",
        "single_partition_of_fp32_groups",
        "update_lp_params",
        "zero_grad",
        "_wait_for_offload_copies",
    )

    def _found(self) -> dict[int, tuple[Tensor, dict[str, Piece]]]:
        found = {}
        for i, group in enumerate(self.zero.bit16_groups):
            pieces = {}
            for parameter in group:
                name = self.zero.param_names[parameter]
                mapping = parameter._hp_mapping
                address = mapping and mapping.hp_fragment_address
                if mapping:  # what `gradients` will ask for
                    _ = mapping.get_lp_grad_fragment, mapping.param_group_index
                    _ = parameter._index_in_param_group
                start, numel = (address.start, address.numel) if address else (0, 0)
                pieces[name] = Piece(name, start, numel, self.sizes[name])
            found[i] = (self.zero.single_partition_of_fp32_groups[i], pieces)
        return found

    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's part of the gradients, flat, as the step will read them."""
        self.zero._wait_for_offload_copies()  # which are on their way to the host
        zero, found = self.zero, {}
        kept = zero.offload_gradient_dict if zero.cpu_offload else zero.averaged_gradients
        for name, parameter in self.trainable.items():
            mapping = parameter._hp_mapping
            if mapping is None:
                found[name] = self.zero.single_partition_of_fp32_groups[0].detach()[:0]
                continue
            if kept.get(mapping.param_group_index) is not None:
                part = mapping.get_lp_grad_fragment(parameter._index_in_param_group)
                found[name] = part.view(-1)
        return found

    def discard_gradients(self) -> None:
        """Forget the gradients, as a step does at its end."""
        self.zero.micro_step_id = -1
        self.zero.zero_grad(set_to_none=True)
        for i in self.zero.averaged_gradients:
            self.zero.averaged_gradients[i] = None
        for i in self.zero.all_grad_tensors:
            self.zero.all_grad_tensors[i] = None
        if self.zero.cpu_offload:
            self.zero.reset_cpu_buffers()

    def written(self) -> None:
        """Bring what was written into `parameters` to the module's weights."""
        self.zero.update_lp_params()


class ZeRO3(Internals):
    """Stage 3."""

    NEEDED = (
        "fp16_groups",
        "fp32_partitioned_groups_flat",
        "get_param_id",
        "grad_position",
        "param_names",
        "persistent_parameters",
        "zero_grad",
        "_get_fp32_grad_state_partition",
        "_reassign_or_swap_out_partitioned_parameters",
    )

    def _found(self) -> dict[int, tuple[Tensor, dict[str, Piece]]]:
        names = {id(parameter): name for name, parameter in self.trainable.items()}
        found = {}
        for i, group in enumerate(self.zero.fp16_groups):
            pieces = {}
            for parameter in group:
                name = names[id(parameter)]
                group_of, start, length = self.zero.grad_position[self.zero.get_param_id(parameter)]
                if group_of != i:
                    raise AttributeError(f"{name} lies in group {group_of}, not {i}")
                # The last parts are filled up to the length of the others.
                first = torch.distributed.get_rank() * length
                numel = min(length, max(0, parameter.ds_numel - first))
                pieces[name] = Piece(name, start, numel, self.sizes[name])
            found[i] = (self.zero.fp32_partitioned_groups_flat[i], pieces)
        return found

    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's part of the gradients, flat, as the step will read them."""
        found = {}
        pieces = {name: piece for _, held in self._pieces.values() for name, piece in held.items()}
        for name, parameter in self.trainable.items():
            padded, _ = self.zero._get_fp32_grad_state_partition(parameter, True)
            found[name] = padded.view(-1)[: pieces[name].numel]
        return found

    def discard_gradients(self) -> None:
        """Forget the gradients, as a step does at its end.

        The next ones overwrite them, but not those of a tensor that a batch does not use.
        """
        self.zero.zero_grad(set_to_none=True)
        for gradient in self.gradients().values():
            gradient.zero_()

    def written(self) -> None:
        """Bring what was written into `parameters` to the module's weights."""
        for i in self._pieces:
            self.zero._reassign_or_swap_out_partitioned_parameters(i)
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)
