"""Episodic memories: examples kept of past tasks, and arithmetic with the gradients on them.

A gradient is a mapping from parameter names to tensors, as backward leaves it; of several memories,
each name has a matrix [memories, entries of that tensor]. Sums over all entries run in chunks, in
float64: nothing of the model's size is copied, and the order of summation is always the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from cl_mofo.data.examples import pack, unpack
from cl_mofo.data.tokenise import Example
from cl_mofo.errors import TrainingError
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    from cl_mofo.loop import Loop

CHUNK = 2**20
"""Entries summed at a time. They take 8 * CHUNK * (memories + 2) bytes."""


class Episodic(Strategy):
    """A strategy that keeps an episodic memory: a few examples of every task learned.

    Its Config has `memory_examples`: how many of each task, at least 1; all of a task that has
    fewer; None for one global batch.
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.memory: list[list[Example]] = []

    def after_experience(self, loop: Loop) -> None:
        """Draw from the task just learned, without replacement, by the run's seed and the task."""
        wanted = self.config.memory_examples or loop.recipe.optimizer.batch_size
        size = min(wanted, len(loop.examples))
        drawn = loop.generator("memory").choice(len(loop.examples), size, replace=False)
        self.memory.append([loop.examples[i] for i in drawn])

    def record(self) -> dict[str, Any]:
        """Return how many examples are kept of each task, in the order learned."""
        return {"memory_examples": [len(examples) for examples in self.memory]}

    def state_dict(self) -> dict[str, Any]:
        """Return the examples as tensors."""
        return {"memory": [pack(examples) for examples in self.memory]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.memory = [unpack(packed) for packed in state["memory"]]


def memory_gradient(loop: Loop, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return the gradient on examples, flat, of all parameters that the step may move.

    The tensors are the caller's: the step's own gradients begin without them.
    """
    loop.replace_gradients(loop.micro_batches(examples))
    taken = loop.engine.take_gradients()
    return {
        name: (taken[name] if name in taken else torch.zeros_like(parameter)).view(-1)
        for name, parameter in loop.parameters().items()
        if name not in loop.engine.frozen
    }


def all_inner_products(
    loop: Loop, memories: Mapping[str, torch.Tensor], gradient: Mapping[str, torch.Tensor]
) -> npt.NDArray[np.float64]:
    """Return what `inner_products` does, over the entries that all ranks hold."""
    here = torch.from_numpy(inner_products(memories, gradient))
    products: npt.NDArray[np.float64] = loop.over_shards(here).numpy()
    return products


def refuse_non_finite(loop: Loop, strategy: str, squares: npt.NDArray[np.float64]) -> None:
    """Refuse memory gradients by their squared lengths, [memories].

    Raises:
        TrainingError: one is not finite.
    """
    if not np.isfinite(squares).all():
        raise TrainingError(
            f"task {loop.plan.task.name}, step {loop.step + 1} of {loop.total_steps}: a gradient "
            f"on {strategy}'s memories is not finite. Nothing was updated. Lower optimizer.lr, or "
            f"compute in float32 (model.compute_dtype)"
        )


def inner_products(
    memories: Mapping[str, torch.Tensor],
    gradient: Mapping[str, torch.Tensor],
    chunk: int = CHUNK,
) -> npt.NDArray[np.float64]:
    """Return all inner products among memory gradients and a gradient, over the entries here.

    Args:
        memories: by name, [memories, entries], of any float type, on the gradient's device or the
            CPU. Names that the gradient lacks do not count.
        gradient: contiguous tensors, at least one.
        chunk: entries summed at a time.

    Returns:
        [memories + 1, memories + 1], the gradient last.
    """
    size = len(next(iter(memories.values()))) + 1
    total = torch.zeros((size, size), dtype=torch.float64)
    for _, rows in _chunks(memories, gradient, chunk):
        total = total.to(rows.device) + rows @ rows.T
    products: npt.NDArray[np.float64] = total.cpu().numpy()
    return products


def combine(
    memories: Mapping[str, torch.Tensor],
    gradient: Mapping[str, torch.Tensor],
    coefficients: npt.NDArray[np.float64],
    chunk: int = CHUNK,
) -> None:
    """Replace a gradient, in place, by a linear combination of memory gradients and itself.

    Args:
        memories: as for `inner_products`.
        gradient: as for `inner_products`; changed.
        coefficients: [memories + 1], the gradient's last.
        chunk: entries computed at a time.
    """
    weights = torch.from_numpy(coefficients)
    for part, rows in _chunks(memories, gradient, chunk):
        weights = weights.to(rows.device)
        part.copy_(weights @ rows)


def _chunks(
    memories: Mapping[str, torch.Tensor], gradient: Mapping[str, torch.Tensor], chunk: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield slices of the gradient, each with the float64 rows of all memories and itself."""
    name, first = next(iter(gradient.items()))
    width = max(1, min(chunk, max(tensor.numel() for tensor in gradient.values())))
    scratch = first.new_empty((len(memories[name]) + 1, width), dtype=torch.float64)
    for name, tensor in gradient.items():
        flat = tensor.view(-1)
        sources = [*memories[name], flat]
        for start in range(0, len(flat), width):
            part = flat[start : start + width]
            rows = scratch[:, : len(part)]
            for row, source in zip(rows, sources, strict=True):
                # Not blocking, so that what is offloaded is converted on the accelerator.
                row.copy_(source[start : start + width], non_blocking=True)
            yield part, rows
