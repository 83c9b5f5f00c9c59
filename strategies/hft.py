"""Half fine-tuning: a random half of each transformer layer's matrices learns, the other is frozen.

    theta_k <- theta_k - (the optimizer's step)    for a random half of the blocks k
    theta_k <- theta_k                             for the others

Hui et al. (arXiv 2404.18466), at its category level: in each layer two of the four attention
matrices are frozen; of the three MLP matrices two in half of the layers, one in the others; and
half of the norms. Embeddings and output head are always updated. There, one draw serves a whole
round of fine-tuning (`redraw: task`); as the MoFO paper describes HFT (arXiv 2407.20999, section
4.2), each iteration draws anew (`redraw: step`, the default), a block coordinate descent. Chosen
here: which layers freeze one more of an odd number is drawn too, so that every block is frozen with
probability 1/2; the norm after the last layer is always updated.

A block is what one module owns: a matrix with its bias, or the adapters of one matrix (lora's A
and B). Its category is the part of the layer it lies in (`self_attn`, `mlp`), or the norms. Where a
layer has no such parts, all its matrices are one category.

To a frozen block the step does not happen: it has no gradient and no decay, and neither its value
nor its moments nor its own count of steps (for bias correction) change. Penalties, projections and
the gradient's norm see the updated half only. With MoFO, `update_fraction` is that of each updated
tensor, so a step moves about half as much as MoFO alone.

Cost: no memory. The gradients of the frozen weights are not computed: with N weights in layers, a
step takes about 5N instead of 6N floating-point operations per token, and half the optimizer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from cl_mofo.errors import UserError
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    from cl_mofo.loop import Loop

Blocks = Mapping[str, Mapping[str, Sequence[tuple[str, ...]]]]
"""{category: {layer: blocks}}, a block being the names of its tensors."""

IN_LAYER = re.compile(r"(?P<layer>.*?\.\d+)\.(?P<inside>.+)")
NORM = re.compile(r"norm|^ln_?\d*$|_ln$")
# What follows a module's path in the name of a tensor: its own names, and those of its adapters.
TENSOR = re.compile(r"\.(weight|bias|base_layer\..+|lora_.+|modules_to_save\..+)$")


def blocks(names: Iterable[str]) -> Blocks:
    """Return the blocks of tensors that lie in numbered layers; other tensors are left out.

    Args:
        names: of parameters, such as `model.layers.3.self_attn.q_proj.weight`.
    """
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name in names:
        if place := IN_LAYER.fullmatch(name):
            module = TENSOR.sub("", place["inside"])
            part, _, rest = module.partition(".")
            category = "norms" if NORM.search(module.rpartition(".")[2]) else part if rest else ""
            layer = found.setdefault(category, {}).setdefault(place["layer"], {})
            layer.setdefault(module, []).append(name)
    return {
        category: {
            layer: [tuple(tensors) for tensors in modules.values()]
            for layer, modules in layers.items()
        }
        for category, layers in found.items()
    }


def draw(blocks: Blocks, generator: np.random.Generator) -> frozenset[str]:
    """Draw the half that is frozen.

    Of n blocks of a category in a layer, n/2 are frozen; of an odd n, (n+1)/2 in half of the
    layers, drawn too, and (n-1)/2 in the others. Every block is as likely frozen as not.

    Returns:
        the names of the frozen tensors.
    """
    frozen: set[str] = set()
    for layers in blocks.values():
        odd = [layer for layer, members in layers.items() if len(members) % 2]
        more = (len(odd) + int(generator.integers(2))) // 2
        one_more = {odd[i] for i in generator.permutation(len(odd))[:more]}
        for layer, members in layers.items():
            count = len(members) // 2 + (layer in one_more)
            for i in generator.permutation(len(members))[:count]:
                frozen.update(members[i])
    return frozenset(frozen)


class HFT(Strategy):
    """Freeze a random half of each layer's blocks while a step learns."""

    name = "hft"
    phases = frozenset({"update"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Args:
            redraw: draw the frozen half anew for each "step", or once for each "task".
        """

        redraw: Literal["step", "task"] = "step"

    config: Config

    def draw_for(self, loop: Loop) -> frozenset[str]:
        """Return the names of the tensors that the loop's present step freezes.

        The draw depends on nothing but the recipe's seed, the task and the step.

        Raises:
            UserError: it would freeze all that is trained.
        """
        when = [loop.step] if self.config.redraw == "step" else []
        frozen = draw(blocks(loop.sizes), loop.generator("hft", *when))
        if len(frozen) == len(loop.sizes):
            raise UserError(
                f"strategy hft: only {len(frozen)} tensors are trained, {min(loop.sizes)} one "
                f"of them, and with half of the blocks frozen none is left. Train more, or leave "
                f"hft out"
            )
        return frozen

    def before_step(self, loop: Loop) -> None:
        """Freeze the half that is drawn."""
        loop.freeze(self.draw_for(loop))
        moving = sum(size for name, size in loop.sizes.items() if name not in loop.frozen)
        loop.figures["hft.moving"] = moving / sum(loop.sizes.values())
