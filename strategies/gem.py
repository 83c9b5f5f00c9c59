"""GEM: project gradients that would raise a past task's loss (arXiv 1706.08840).

With g the step's gradient and the rows of G the gradients on a memory of each past task, all at the
present weights and over all trained parameters at once: if some <g, G_k> is negative, solve

    min_v  1/2 v^T (G G^T + ridge I) v + (G g)^T v   subject to   v >= margin,

and step along g + G^T v. That is the gradient nearest to g that lowers no memory's agreement below
zero (margin 0, ridge 0). Lopez-Paz and Ranzato, Section 3, "biased" the projection towards backward
transfer by a small constant on v; their code, and all since, takes it as v's lower bound.

Memories keep examples of a task's own rows, drawn at its end; the current task is no constraint. A
memory's loss is the mean over its tokens, also where the step's is over micro-batches. g is the
gradient after penalties and before clipping, and MoFO's momentum that of the projected one. Of
parameters that a step does not move, neither g nor G has entries in this step.

TRACE's code calls another method GEM: it keeps the gradient of a task's last mini-batch instead of
examples, projects each tensor on its own, and has a wrong sign in the quadratic program (g = -1 and
memory gradient 1 give -2 at margin 0, where 0 is right). It is not offered here.

Cost, with P trained parameters, t past tasks, b bytes an entry (2 in bfloat16, 4 in float32):
time, 1 + t/refresh gradients a step (the memory's of `memory_examples` examples); memory, b t P
bytes for G (on the host with `offload`, where pinned blocks round up to powers of two) and
8 (t + 2) 2^20 of scratch, during a task's steps only. TinyLlama's 1.1e9 parameters after 7 tasks:
17.6 GB of float32 weights, gradients and Adam moments, and 15.4 GB for G in bfloat16 (30.8 in
float32): 33 GB (48), activations aside, of an accelerator's 80; 17.7 with `offload`. With
`refresh` above 1 a checkpoint in the middle of a task holds G too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy.optimize import nnls

from cl_mofo.episodic import (
    Episodic,
    all_inner_products,
    combine,
    memory_gradient,
    refuse_non_finite,
)
from cl_mofo.parts import Parts

if TYPE_CHECKING:
    from cl_mofo.loop import Loop

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]


def solve_dual(gram: Matrix, dots: Vector, margin: float = 0.0, ridge: float = 0.0) -> Vector:
    """Return a minimiser of 1/2 v^T (gram + ridge I) v + dots^T v subject to v >= margin.

    By v = margin + u and a square root E of the matrix this is min |E u - f| for u >= 0, which
    Lawson and Hanson's active sets solve. Parallel and zero memory gradients make the matrix
    singular: E has only its directions above rounding; v is then not unique, but G^T v is.

    Args:
        gram: [t, t], G G^T.
        dots: [t], G g, in the range of G G^T.
        margin: at least 0.
        ridge: at least 0.
    """
    matrix = gram + ridge * np.eye(len(dots))
    linear = dots + matrix @ np.full(len(dots), margin)
    v = np.full(len(dots), margin)
    # A column that is zero but for rounding would mislead the active sets; its v has no effect.
    felt = np.flatnonzero(np.diag(matrix) > 0)
    if not felt.size:
        return v
    # In units of each memory gradient's own length: a small one is not taken for rounding.
    lengths = np.sqrt(np.diag(matrix)[felt])
    values, vectors = np.linalg.eigh(matrix[np.ix_(felt, felt)] / np.outer(lengths, lengths))
    kept = values > len(dots) * 1e-14
    root, directions = np.sqrt(values[kept])[:, None], vectors[:, kept].T
    constant = directions @ (linear[felt] / lengths) / root[:, 0]
    v[felt] += nnls(root * directions, -constant)[0] / lengths
    return v


def project(
    gradient: torch.Tensor, memories: torch.Tensor, margin: float = 0.0, ridge: float = 0.0
) -> torch.Tensor:
    """Return a gradient, projected if it disagrees with some memory's.

    Args:
        gradient: [n].
        memories: [t, n], one memory gradient a row.
        margin: lower bound of the dual variables, at least 0.
        ridge: added to the diagonal of the Gram matrix, at least 0.
    """
    g, G = gradient.double(), memories.double()
    dots = G @ g
    if (dots >= 0).all():
        return gradient
    v = solve_dual((G @ G.T).cpu().numpy(), dots.cpu().numpy(), margin, ridge)
    return (g + G.T @ torch.from_numpy(v).to(g.device)).to(gradient.dtype)


class GEM(Episodic):
    """Constrain each step by the gradients on memories of all past tasks."""

    name = "gem"
    phases = frozenset({"projection", "end"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Args:
            memory_examples: examples kept of each task, at least 1; null: one global batch.
            margin: lower bound of the dual variables, at least 0; 0 only forbids disagreement,
                more adds the memories' gradients whenever there is some. TRACE's scripts: 0.5.
            ridge: added to the Gram matrix's diagonal, at least 0. Avalanche's: 1e-3.
            refresh: compute the memories' gradients every so many steps of a task, at least 1.
            dtype: of the memories' gradients. bfloat16 turns a gradient by less than 1/250 of its
                length, far below what drawing other memories would; float32 is exact.
            offload: keep the memories' gradients on the host.
        """

        memory_examples: Annotated[int, Field(ge=1)] | None = None
        margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
        ridge: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
        refresh: Annotated[int, Field(ge=1)] = 1
        dtype: Literal["bfloat16", "float32"] = "bfloat16"
        offload: bool = False

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.rows: dict[str, torch.Tensor] = {}

    def before_step(self, loop: Loop) -> None:
        """Compute the memories' gradients at the weights that the step starts from."""
        if loop.step % self.config.refresh:
            return
        # With refresh, a later step may move parameters that this one does not.
        with loop.nothing_frozen() if self.config.refresh > 1 else nullcontext():
            for task, examples in enumerate(self.memory):
                for name, gradient in memory_gradient(loop, examples).items():
                    self._rows_of(name, gradient)[task].copy_(gradient, non_blocking=True)

    def _rows_of(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        if name not in self.rows:
            self.rows[name] = torch.empty(
                (len(self.memory), len(gradient)),
                dtype=getattr(torch, self.config.dtype),
                device="cpu" if self.config.offload else gradient.device,
                pin_memory=self.config.offload and gradient.is_cuda,
            )
        return self.rows[name]

    def on_gradients(self, loop: Loop) -> None:
        """Project the step's gradient if it disagrees with some memory's.

        Raises:
            TrainingError: a memory's gradient is not finite.
        """
        gradient = loop.gradients()
        if not self.rows or not gradient:
            return
        products = all_inner_products(loop, self.rows, gradient)
        squares = np.diag(products)
        refuse_non_finite(loop, self.name, squares[:-1])
        if not np.isfinite(squares[-1]):
            return  # the loop's own check names the tensor
        gram, dots = products[:-1, :-1], products[:-1, -1]
        coefficients = np.append(np.zeros_like(dots), 1.0)
        if (dots < 0).any():
            coefficients[:-1] = solve_dual(gram, dots, self.config.margin, self.config.ridge)
            combine(self.rows, gradient, coefficients)
        after = max(0.0, coefficients @ products @ coefficients)
        smallest = np.finfo(float).tiny
        lengths = np.sqrt(np.maximum(squares, smallest))
        loop.figures["gem.violated"] = float((dots < 0).sum())
        loop.figures["gem.least_cosine"] = float((dots / lengths[:-1] / lengths[-1]).min())
        loop.figures["gem.norm_ratio"] = float(np.sqrt(after) / lengths[-1])

    def after_experience(self, loop: Loop) -> None:
        """Draw the task's memory, and free what only its steps needed."""
        self.rows = {}
        super().after_experience(loop)

    def state_dict(self) -> dict[str, Any]:
        """Return the memories, and their gradients if a later step uses them again."""
        reused = self.rows if self.config.refresh > 1 else {}
        tasks = range(len(self.memory) if reused else 0)
        rows = [Parts({name: row[task] for name, row in reused.items()}) for task in tasks]
        return super().state_dict() | {"rows": rows}

    def home(self, device: torch.device) -> torch.device:
        """Return the host where the state stays there: the device may have no room for it."""
        return torch.device("cpu") if self.config.offload else device

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict(state)
        rows = state["rows"]
        for name in rows[0] if rows else ():
            row = torch.stack([gradients[name].reshape(-1) for gradients in rows])
            self.rows[name] = row
