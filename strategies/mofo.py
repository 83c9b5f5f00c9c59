"""MoFO: Adam that updates only the entries with the largest momentum (arXiv 2407.20999).

In every parameter tensor of d entries, step t updates the ceil(update_fraction * d) entries with
the largest |m_t| (Algorithm 1); the others keep their value, and all keep their moments current.
The momentum is that of the final gradient: after penalties, projections and clipping.

The published figures come from the authors' groups, in which norms and biases are not filtered;
`filter_all` filters every tensor, as the paper's text has it.

Cost: AdamW's two moments per parameter, and a selection per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cl_mofo.optim import MoFO as Optimizer
from cl_mofo.optim import authors_groups
from cl_mofo.strategy import Strategy

if TYPE_CHECKING:
    import torch

    from cl_mofo.config import OptimizerConfig


class MoFO(Strategy):
    """Filter the update of AdamW by momentum."""

    name = "mofo"
    phases = frozenset({"optimizer"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Args:
            update_fraction: share of each tensor's entries that a step updates, in (0, 1].
            filter_all: filter norms and biases too.
            decay: "selected" decays the entries that are updated; "all" every entry (the authors').
        """

        update_fraction: Annotated[float, Field(gt=0, le=1)] = 0.05
        filter_all: bool = False
        decay: Literal["selected", "all"] = "selected"

    config: Config

    def make_optimizer(
        self, named_parameters: Sequence[tuple[str, torch.nn.Parameter]], settings: OptimizerConfig
    ) -> torch.optim.Optimizer:
        """Return the MoFO optimizer over the authors' groups, or over one filtered group."""
        groups = authors_groups(named_parameters, weight_decay=settings.weight_decay)
        if self.config.filter_all:
            groups = [{k: v for k, v in g.items() if k != "update_fraction"} for g in groups]
        return Optimizer(
            groups,
            settings.lr,
            settings.betas,
            settings.eps,
            update_fraction=self.config.update_fraction,
            decay=self.config.decay,
        )
