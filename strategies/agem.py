"""A-GEM: keep the gradient from disagreeing with that of all memories together (arXiv 1812.00420).

With g the step's gradient and r the gradient on a batch drawn anew for each step from the memories
of all past tasks, both at the present weights and over all trained parameters: if <g, r> is
negative, step along

    g - (<g, r> / <r, r>) r

(Chaudhry et al. 2019, equation 11), which is GEM with one constraint and margin 0. The average of
the past tasks' losses does not rise; that of a single one may. Memories are GEM's: examples of a
task's own rows, drawn at its end. g is the gradient after penalties and before clipping; r has no
entries for parameters that the step does not move.

Cost, with P trained parameters: 2 gradients a step, however many tasks there are; memory, 4 P bytes
for r (4.4 GB for TinyLlama) and 24 * 2^20 of scratch, during a step only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field

from cl_mofo.episodic import (
    Episodic,
    all_inner_products,
    combine,
    memory_gradient,
    refuse_non_finite,
)

if TYPE_CHECKING:
    from cl_mofo.loop import Loop


def project(gradient: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return a gradient without what disagrees with a reference gradient.

    Args:
        gradient: [n].
        reference: [n].
    """
    dot = gradient @ reference
    if dot >= 0:
        return gradient
    return gradient - dot / (reference @ reference) * reference


class AGEM(Episodic):
    """Constrain each step by the gradient on a batch from all memories."""

    name = "agem"
    phases = frozenset({"projection", "end"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Args:
            memory_examples: examples kept of each task, at least 1; null: one global batch.
            batch_examples: examples drawn from all memories for a step, at least 1; null: one
                global batch. All of them if there are fewer.
        """

        memory_examples: Annotated[int, Field(ge=1)] | None = None
        batch_examples: Annotated[int, Field(ge=1)] | None = None

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.reference: dict[str, torch.Tensor] = {}

    def before_step(self, loop: Loop) -> None:
        """Compute the gradient on a batch of memories at the weights that the step starts from."""
        kept = [example for examples in self.memory for example in examples]
        if not kept:
            return
        size = min(self.config.batch_examples or loop.recipe.optimizer.batch_size, len(kept))
        drawn = loop.generator("agem", loop.step).choice(len(kept), size, replace=False)
        self.reference = memory_gradient(loop, [kept[i] for i in drawn])

    def on_gradients(self, loop: Loop) -> None:
        """Project the step's gradient if it disagrees with the memories'.

        Raises:
            TrainingError: the memories' gradient is not finite.
        """
        gradient = loop.gradients()
        if not self.reference or not gradient:
            return
        rows = {name: tensor[None] for name, tensor in self.reference.items()}
        self.reference = {}
        products = all_inner_products(loop, rows, gradient)
        square, dot = products[0]
        refuse_non_finite(loop, self.name, products[:1, 0])
        if dot < 0:
            combine(rows, gradient, np.array([-dot / square, 1.0]))
        lengths = np.sqrt(np.maximum(np.diag(products), np.finfo(float).tiny))
        loop.figures["agem.cosine"] = float(dot / lengths[0] / lengths[1])
        loop.figures["agem.projected"] = float(dot < 0)
