"""The parameter groups of the authors' runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def authors_groups(
    named_parameters: Iterable[tuple[str, Tensor]], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the groups that MoFO's published figures were made with, for `MoFO(groups, lr)`.

    Parameters with "norm" or "bias" in their name are unfiltered (`update_fraction` None); the
    others take the optimizer's `update_fraction`. Those with "norm" or "ln_f" do not decay. The
    paper's Algorithm 1 filters every tensor: for that, pass `model.named_parameters()` itself.

    Args:
        named_parameters: as of `model.named_parameters()`; frozen ones are left out.
        weight_decay: decoupled decay of all the others, biases included.

    Returns:
        Up to four groups, each parameter with its name, none empty.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        filtered = "norm" not in name and "bias" not in name
        decays = "norm" not in name and "ln_f" not in name
        if (filtered, decays) not in groups:
            group: dict[str, Any] = {"params": [], "weight_decay": weight_decay if decays else 0.0}
            if not filtered:
                group["update_fraction"] = None
            groups[filtered, decays] = group
        groups[filtered, decays]["params"].append((name, parameter))
    return list(groups.values())
