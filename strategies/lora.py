"""LoRA: train low-rank adapters beside frozen linear layers (Hu et al., arXiv 2106.09685).

A linear layer with weight W [out, in] answers  W x + (alpha / rank) B A dropout(x)  (section 4.1,
equation 3), with A [rank, in] drawn and B [out, rank] zero at the start: the first answers are the
base model's. Only the A and B are trained and kept in a run's state; W keeps its bits. The layers
are peft's. The distance to the initial weights, and the saved `model/`, are of the merged weights
W + (alpha / rank) B A; the adapters alone are saved as `adapter/`, in peft's format.

Defaults are TRACE's rank, alpha and dropout, but on every linear layer: TRACE adapts the query and
value projections only (`targets: [q_proj, v_proj]` for Llama). LoRA wants a higher learning rate
than full fine-tuning, and gets the one that the recipe says: the MoFO paper sets `optimizer.lr` to
1e-4 for LoRA and 2e-5 for the others (appendix C.3), with ranks 4, 16, 64 and 256.

With `mofo` the filter acts on every A and B by itself (appendix E.2); penalties, projections and
masks too see the adapters only.

Cost: gradients, AdamW's moments and the state are those of sum(rank * (in + out)) parameters
instead of sum(in * out). While evaluating, and where merged weights are asked for, a second copy of
the adapted layers; 2 * rank * in * out operations per layer to make it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field

from cl_mofo.config import PositiveInt
from cl_mofo.errors import UserError
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    from pathlib import Path

    from cl_mofo.loop import Loop
    from cl_mofo.model import LanguageModel

ADAPTER = "default"
"""What peft calls its first adapter."""


def low_rank_update(
    lora_a: torch.Tensor, lora_b: torch.Tensor, alpha: float, rank: int
) -> torch.Tensor:
    """Return (alpha / rank) B A, what an adapter adds to its layer's weight.

    Args:
        lora_a: A [rank, in].
        lora_b: B [out, rank].
        alpha: the scale at rank 1.
        rank: r.

    Returns:
        a tensor [out, in].
    """
    return (lora_b @ lora_a) * (alpha / rank)


def target_layers(module: Any, targets: str | Sequence[str]) -> list[str]:
    """Return the names of the linear layers to adapt, in the model's order; never the head.

    Args:
        module: a causal language model of transformers'.
        targets: as in `LoRA.Config`.

    Raises:
        UserError: a target names no linear layer; says which there are.
    """
    from transformers.pytorch_utils import Conv1D

    head = module.get_output_embeddings()
    linear = [
        name
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear | Conv1D) and part is not head
    ]
    if targets == "all-linear":
        chosen = {target: [target] for target in linear}
    elif targets == "attention":
        chosen = {targets: [n for n in linear if "attn" in n.lower() or "attention" in n.lower()]}
    else:
        chosen = {t: [n for n in linear if n == t or n.endswith(f".{t}")] for t in targets}
    absent = [target for target, layers in chosen.items() if not layers]
    if absent or not chosen:
        known = dict.fromkeys(name.rpartition(".")[2] for name in linear)
        raise UserError(
            f"recipe key lora.targets: {', '.join(absent) or targets} names no linear layer of the "
            f"model (the head cannot be adapted); there are {', '.join(known) or 'none'}"
        )
    wanted = {name for layers in chosen.values() for name in layers}
    return [name for name in linear if name in wanted]


class LoRA(Strategy):
    """Train low-rank adapters, the base model frozen."""

    name = "lora"
    phases = frozenset({"model"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Args:
            rank: r, at least 1.
            alpha: the update is scaled by alpha / rank; above 0.
            dropout: chance that an adapter's input entry is dropped in training, in [0, 1).
            targets: "all-linear" is every linear layer but the head, "attention" those within
                attention blocks; or a list of layers' names or their last parts, as `q_proj`.
        """

        rank: PositiveInt = 8
        alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
        targets: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"

        def __post_init__(self) -> None:
            if not self.targets or not all(self.targets):
                raise ValueError("targets must name at least one layer, and none by an empty text")

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.layers: list[str] = []
        self._trained = 0

    def check_model(self, language_model: LanguageModel) -> None:
        """Refuse targets that the model does not have."""
        target_layers(language_model.module, self.config.targets)

    def adapt_model(self, language_model: LanguageModel) -> None:
        """Put an adapter beside every target, and freeze all else."""
        from cl_mofo.compat import repair_torchvision

        repair_torchvision()
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D

        module = language_model.module
        self.layers = target_layers(module, self.config.targets)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=self.layers,
            fan_in_fan_out=isinstance(module.get_submodule(self.layers[0]), Conv1D),
        )
        inject_adapter_in_model(config, module, ADAPTER)
        self._trained = sum(p.numel() for p in module.parameters() if p.requires_grad)

    def weights(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return the base model's names with merged weights; the module is left as it is."""
        weights = {}
        for name, parameter in module.named_parameters():
            if ".lora_" not in name:
                weights[name.replace(".base_layer.", ".")] = parameter.detach()
        with torch.no_grad():
            for name, layer in _adapted(module):
                if not layer.merged:
                    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                    update = low_rank_update(a, b, self.config.alpha, self.config.rank)
                    update = update.T if layer.fan_in_fan_out else update
                    weights[f"{name}.weight"] = weights[f"{name}.weight"] + update
        return weights

    @contextmanager
    def evaluating(self, module: torch.nn.Module) -> Iterator[None]:
        """Merge, so that answering costs what it costs the base model.

        Then put back the very tensors that were there: subtracting would leave rounding behind.
        """
        kept: list[tuple[Any, torch.Tensor]] = []
        try:
            for _, layer in _adapted(module):
                kept.append((layer, layer.get_base_layer().weight.data))
                with torch.no_grad():
                    layer.merge(safe_merge=True)
            yield
        finally:
            for layer, data in kept:
                with torch.no_grad():
                    layer.unmerge()
                layer.get_base_layer().weight.data = data

    def export(self, loop: Loop, module: Any, folder: Path) -> None:
        """Write `adapter/`, for `peft.PeftModel.from_pretrained`."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        target = folder / "adapter"
        config = copy.copy(module.peft_config[ADAPTER])
        config.target_modules = sorted(config.target_modules)
        config.base_model_name_or_path = loop.recipe.model.path
        config.inference_mode = True
        config.save_pretrained(str(target))
        trained = {n: p for n, p in module.named_parameters() if n in loop.sizes}
        adapters = get_peft_model_state_dict(
            module, state_dict=trained, save_embedding_layers=False
        )
        save_file(
            {f"base_model.model.{n}": t.detach().cpu().contiguous() for n, t in adapters.items()},
            target / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )

    def record(self) -> dict[str, Any]:
        """Return how many parameters are trained, and beside which layers."""
        return {"parameters": self._trained, "layers": self.layers}

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, without which the adapters' tensors mean nothing."""
        return {"scale": self.config.alpha / self.config.rank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a state of the same scale.

        Raises:
            ValueError: the adapters were trained at another scale.
        """
        if state != self.state_dict():
            raise ValueError(
                f"lora: the state's adapters were trained at alpha / rank {state.get('scale')}, "
                f"not {self.config.alpha / self.config.rank}"
            )


def _adapted(module: torch.nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, part) for name, part in module.named_modules() if isinstance(part, LoraLayer)]
