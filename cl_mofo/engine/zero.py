"""The engine on DeepSpeed: ZeRO's stages 0 to 3, with the optimizer or the weights on the host.

DeepSpeed sums up and spreads gradients, calls the optimizer on what it spread, and gathers weights.
Gradients are summed up in float32 and clipped by the loop, so DeepSpeed's own clipping is off.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from cl_mofo.config import EngineConfig
from cl_mofo.engine.base import Copy, MakeOptimizer, Moments
from cl_mofo.engine.internals import Internals, Whole, ZeRO3, ZeRO12, compile_nothing
from cl_mofo.engine.ranks import Ranks
from cl_mofo.engine.shared import SpreadEngine
from cl_mofo.errors import UserError
from cl_mofo.model import LanguageModel


class DeepSpeedEngine(SpreadEngine):
    """What the ZeRO stage spreads: 0 nothing, 1 moments, 2 gradients too, 3 weights too.

    Args:
        config: stage and offload.
        ranks: the processes of the run.
        on_cpu: whether the model computes on a CPU.

    Raises:
        UserError: DeepSpeed is not there, or does not start.
    """

    def __init__(self, config: EngineConfig, ranks: Ranks, *, on_cpu: bool) -> None:
        super().__init__(ranks)
        self._deepspeed = import_deepspeed(on_cpu=on_cpu)
        self._held = ExitStack()
        self.config = config
        self.stage = config.zero_stage
        if self.stage:
            self.holds_no_tensor_back = (
                "DeepSpeed's ZeRO cannot from stage 1 on: it packs many tensors into one, with one "
                "count of steps. Give engine.zero_stage=0 or engine.kind=fsdp"
            )

    def prepare(self, language_model: LanguageModel, make_optimizer: MakeOptimizer) -> None:
        """Hand model and optimizer to DeepSpeed, and tell the optimizer what it is given.

        An optimizer that does more than move each entry by itself has a method `shard`, as
        `cl_mofo.MoFO` has: it is told which parts of which tensors its flat parameters hold.

        Raises:
            UserError: this release of DeepSpeed keeps its state otherwise than is known.
        """
        self.module = language_model.module
        if self.stage == 3:
            self._copy = Copy(self.module)
        named = self.module.named_parameters()
        self._trainable = {name: p for name, p in named if p.requires_grad}
        self._sizes = {name: p.numel() for name, p in self._trainable.items()}
        self.optimizer = make_optimizer(list(self._trainable.items()))
        self._held.enter_context(local_rank_said())
        self._engine, *_ = self._deepspeed.initialize(
            model=self.module,
            optimizer=self.optimizer,
            config=settings(self.config, self.ranks.count, language_model.compute_dtype),
            dist_init_required=False,
        )
        kinds: dict[int, type[Internals]] = {0: Whole, 1: ZeRO12, 2: ZeRO12, 3: ZeRO3}
        self._internals = kinds[self.stage](self._engine, self._trainable, self._sizes)
        tell = getattr(self.optimizer, "shard", None)
        if tell is not None:
            tell(self._internals.shards())

    @property
    def trainable(self) -> Mapping[str, Parameter]:
        """The trained parameters by name; at stage 3 they are empty between passes."""
        return self._trainable

    def forward(self, **inputs: Any) -> Any:
        """Run the model, for a backward pass to follow."""
        return self._engine(**inputs)

    def micro_batch(self, *, last: bool) -> None:
        """Let gradients be reduced after the next backward pass, or gathered on."""
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient; DeepSpeed takes the ranks' mean, and the batch's is their sum."""
        self._engine.backward(loss * self.ranks.count, scale_wrt_gas=False)

    def parameters(self) -> dict[str, Tensor]:
        """Return this rank's part of the trained weights, flat."""
        return self._internals.parameters()

    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's part of the gradients, flat."""
        return self._internals.gradients()

    def discard_gradients(self) -> None:
        """Forget the gradients."""
        self._internals.discard_gradients()

    @property
    def spread(self) -> bool:
        """Whether each rank holds its own part of a tensor: not at stage 0."""
        return self.stage > 0

    def over_shards(self, tensor: Tensor) -> Tensor:
        """Return the sum over all parts; at stage 0 each rank holds everything."""
        return tensor if self.stage == 0 else super().over_shards(tensor)

    def norm(self) -> Tensor:
        """Return the Euclidean norm [] of all gradients together."""
        return (
            get_total_norm(list(self.gradients().values())) if self.stage == 0 else super().norm()
        )

    def freeze(self, names: frozenset[str]) -> None:
        """Let steps move all but these, where the stage can.

        Raises:
            UserError: it cannot.
        """
        if self.holds_no_tensor_back is None:
            super().freeze(names)
        elif names:
            raise UserError(
                f"{min(names)} is to be kept out of a step, which {self.holds_no_tensor_back}"
            )

    def step(self, unless: Tensor | None = None) -> None:
        """Let the optimizer take its step."""
        self._engine.step()

    def whole(self) -> AbstractContextManager[Any]:
        """Give the module itself, or at stage 3 a copy with whole weights."""
        return super().whole() if self.stage == 3 else nullcontext(self.module)

    def close(self) -> None:
        """Let DeepSpeed go, which at stage 3 must come before the processes part."""
        self._engine.destroy()

    def abandon(self) -> None:
        """Take LOCAL_RANK back."""
        self._held.close()

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            with self._deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach().clone()

    def _moments(self) -> dict[str, Moments]:
        return self._internals.moments(self.optimizer)

    def _make_moments(self, moments: Mapping[str, Moments]) -> None:
        self._internals.make_moments(self.optimizer, moments)

    def _written(self) -> None:
        self._internals.written()


def settings(config: EngineConfig, ranks: int, compute_dtype: torch.dtype) -> dict[str, Any]:
    """Return DeepSpeed's configuration."""
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        # All of a group in one optimizer step, and so in one selection.
        "sub_group_size": 10**15,
        # Entries reduced at a time; the default takes 2 GB in float32, twice where it overlaps.
        "reduce_bucket_size": 10**8,
    }
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # The loop counts examples and passes; DeepSpeed only has to hear that these three agree.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**15,
        "torch_autocast": {
            "enabled": compute_dtype == torch.bfloat16,
            "dtype": "bfloat16",
            # Gradients are summed up over ranks in float32, those of linear layers too.
            "lower_precision_safe_modules": [],
        },
    }


@contextmanager
def local_rank_said() -> Iterator[None]:
    """Say LOCAL_RANK, which DeepSpeed wants of one process too, for as long as it is held.

    Left behind, it would make other libraries of this process wait for ranks that are not there.
    """
    there = "LOCAL_RANK" in os.environ
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        yield
    finally:
        if not there:
            os.environ.pop("LOCAL_RANK", None)


def import_deepspeed(*, on_cpu: bool) -> Any:
    """Import DeepSpeed, quietly.

    Raises:
        UserError: it is not installed, or wants a compiler that is not there.
    """
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise UserError(
            f"recipe key engine.kind: deepspeed cannot be imported ({error}). Install it "
            f"(pip install deepspeed), or give engine.kind=fsdp"
        ) from error
    except Exception as error:
        reason = next(iter(str(error).splitlines()), repr(error))
        raise UserError(
            f"recipe key engine.kind: deepspeed does not start ({reason}). It looks for a compiler "
            f"and, beside a GPU, for CUDA's (CUDA_HOME): install them, or give engine.kind=fsdp"
        ) from error
    if on_cpu:
        compile_nothing(deepspeed)
    return deepspeed
