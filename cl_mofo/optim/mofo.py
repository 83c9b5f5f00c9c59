"""MoFO, the momentum-filtered optimizer (Chen et al., arXiv 2407.20999, Algorithm 1).

For every parameter tensor, a partition of d entries, with gradient g at step t:

    m <- beta1 m + (1 - beta1) g                  every entry
    v <- beta2 v + (1 - beta2) g^2                every entry
    S <- the ceil(update_fraction * d) entries with the largest |m|, ties to the smallest index
    theta_S <- AdamW's step for these entries; the others keep their bits
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Literal, overload

import torch
from torch import Tensor

from cl_mofo.optim.nonfinite import GradientCheck
from cl_mofo.optim.options import OPTIONS, check_options, check_parameter
from cl_mofo.optim.paths import paths
from cl_mofo.optim.selection import Share
from cl_mofo.optim.shards import Shards, local, shards_of
from cl_mofo.optim.step import new_state, zero_moment
from cl_mofo.optim.work import Work


class MoFO(torch.optim.Optimizer):
    """AdamW that moves, in each tensor, only the entries with the largest first moment.

    Both moments are updated everywhere; an entry that is not selected keeps its bits. float16 and
    bfloat16 parameters have float32 moments, and the arithmetic of their step is float32. A tied
    parameter, however often it is listed, is one partition.

    A step in which any gradient is not finite changes nothing, anywhere. On a CPU the error comes
    at once; elsewhere the device discards the step by itself, and the next `step` or `check` tells.

    Parameters that several ranks share as DTensors (FSDP2) are selected from as the whole tensors
    they are: the result is one process's, whatever the number of ranks. `shard` says the same of
    flat parameters that hold parts of tensors (DeepSpeed's ZeRO). `step` is then a collective call.

    Args:
        params: parameters, groups of them, or `model.named_parameters()`, whose names errors use.
        lr: learning rate, at least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: decoupled weight decay, at least 0.
        update_fraction: share of each tensor's entries that move, in (0, 1], taken as the decimal
            (or ratio) it is written as; None leaves a group unfiltered, which makes it AdamW.
        decay: "selected" entries decay, as they move; or "all", as in the authors' code.

    Each group may set any of these for itself.

    Raises:
        ValueError: an option is out of its range, or a parameter is complex or not floating-point.
    """

    found_inf: Tensor | None = None
    """[]: set by whoever has looked at the gradients already, as of torch's own optimizers; unless
    it is 0, `step` changes nothing. It then does not look itself, and raises no error."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        update_fraction: Share | None = 0.05,
        decay: Literal["selected", "all"] = "selected",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "update_fraction": update_fraction,
            "decay": decay,
        }
        check_options(defaults)
        self._unread: GradientCheck | None = None
        self._shards: dict[Tensor, Shards] = {}
        self._paths = paths()
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._unread = None
        # torch calls this when it loads a state, too, and then what `shard` said still holds.
        self._shards = self.__dict__.get("_shards", {})
        self._paths = paths()

    def shard(self, shards: Mapping[Tensor, Shards]) -> None:
        """Say what flat parameters hold, each of which is one partition otherwise.

        Args:
            shards: by parameter; any that are stepped later, also if they are in no group yet.
        """
        self._shards.update(shards)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; options it leaves out are the constructor's.

        Raises:
            ValueError: as for the constructor.
        """
        group = {**self.defaults, **param_group}
        check_options(group)
        params = group["params"]
        if not isinstance(params, set):  # which torch refuses: it has no order
            group["params"] = _without_repeats([params] if isinstance(params, Tensor) else params)
            for index, item in enumerate(group["params"]):
                name, param = item if isinstance(item, tuple) else (f"parameter {index}", item)
                check_parameter(name, param)
        super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters without a gradient are left alone.

        Args:
            closure: computes gradients anew and returns the loss, which `step` then returns.

        Raises:
            NonFiniteGradientError: a gradient is not finite; for parameters that are not on a CPU,
                one of the step before.
            RuntimeError: a gradient is sparse.
        """
        self.check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [
            Work(
                group,
                param,
                param.grad,
                self._shards.get(param) or shards_of(name, param),
                self.state.get(param, {}),
            )
            for group, name, param in self._parameters()
            if param.grad is not None
        ]
        for item in work:
            if local(item.grad).layout != torch.strided:
                name, layout = item.shards.pieces[0].name, item.grad.layout
                raise RuntimeError(f"the gradient of {name} is {layout}; MoFO needs it dense")
        verdict = self._verdict(work) if self.found_inf is None else self.found_inf != 0
        for item in work:
            if not item.state:
                item.state.update(new_state(item.param))
                self.state[item.param] = item.state
        for path in self._paths:
            taken: list[Work] = []
            left: list[Work] = []
            for item in work:
                (taken if path.takes(item) else left).append(item)
            if taken:
                path.step(taken, verdict)
            work = left
        return loss

    def check(self) -> None:
        """Wait for the last step's verdict on its gradients, if it is not read yet.

        Raises:
            NonFiniteGradientError: that step was discarded.
        """
        unread, self._unread = self._unread, None
        if unread is not None:
            unread.raise_if_found()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned: copied, moments in their own dtype.

        Raises:
            ValueError: groups, options or shapes do not fit; nothing has changed then.
        """
        given: dict[str, Any] = {}

        def look(_: torch.optim.Optimizer, final: dict[str, Any]) -> None:
            given.update(final)
            for group in final["param_groups"]:
                if absent := OPTIONS - group.keys():
                    raise ValueError(f"the saved groups have no {min(absent)}: they are not MoFO's")
                check_options(dict(group))
            for name, param, saved in self._saved(final):
                for key in ("exp_avg", "exp_avg_sq"):
                    if saved[key].shape != param.shape:
                        shapes = f"{tuple(saved[key].shape)}, not {tuple(param.shape)}"
                        raise ValueError(f"state of {name}: {key} has the shape {shapes}")

        hook = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            hook.remove()
        # torch casts moments to the parameter's dtype, which would round those of bfloat16 ones.
        for _, param, saved in self._saved(given):
            for key, value in saved.items():
                if key == "step":
                    fresh = torch.empty((), dtype=torch.float32, device=param.device)
                else:
                    fresh = zero_moment(param)
                self.state[param][key] = fresh.copy_(value)

    def _saved(self, state_dict: dict[str, Any]) -> Iterable[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yield the name, the parameter and the saved state of those that have one."""
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for (_, name, param), key in zip(self._parameters(), ids, strict=False):
            if key in state_dict["state"]:
                yield name, param, state_dict["state"][key]

    def _parameters(self) -> Iterable[tuple[dict[str, Any], str, Tensor]]:
        for number, group in enumerate(self.param_groups):
            for index, param in enumerate(group["params"]):
                if "param_names" in group:
                    name = group["param_names"][index]
                else:
                    name = f"parameter {index} of group {number}, shape {tuple(param.shape)}"
                yield group, name, param

    def _verdict(self, work: list[Work]) -> Tensor | None:
        """Refuse gradients that are not finite, or return the device's flag that discards them."""
        gradients = [
            (piece.name, piece.of(local(item.grad).reshape(-1)))
            for item in work
            for piece in item.shards.pieces
        ]
        ranks = dict.fromkeys(item.shards.ranks for item in work if item.shards.ranks is not None)
        check = GradientCheck(gradients, tuple(ranks))
        if self._defers(gradients):
            self._unread = check
            return check.found
        check.raise_if_found()
        return None

    @staticmethod
    def _defers(gradients: list[tuple[str, Tensor]]) -> bool:
        """Tell whether reading the verdict now would make the host wait for a device."""
        return any(grad.device.type != "cpu" for _, grad in gradients)


def _without_repeats(items: Iterable[Any]) -> list[Any]:
    """Keep the first mention of each parameter, bare or named."""
    first: dict[int, Any] = {}
    for item in items:
        first.setdefault(id(item[1] if isinstance(item, tuple) else item), item)
    return list(first.values())
