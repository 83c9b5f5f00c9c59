"""The ways a step can be computed: each takes the parameters that it is made for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cl_mofo.optim.native import Native
from cl_mofo.optim.pure import Pure
from cl_mofo.optim.work import Work

_log = logging.getLogger(__name__)


class Path(Protocol):
    """A way to compute a step; an optimizer has an instance of its own, for its lifetime.

    All ways move the same entries, given the same moments.
    """

    def takes(self, item: Work) -> bool:
        """Tell whether this is the way for a parameter, whose state exists by now.

        It is asked at every step, and what it says may change: gradients come and go. It must say
        no to what it does not know: parts of tensors, strides, devices, dtypes.
        """

    def step(self, items: Sequence[Work], discard: Tensor | None) -> None:
        """Take the step of these parameters, in place: moments, step counters and entries.

        Args:
            items: what it takes, at least one, all with finite gradients if `discard` is None.
            discard: 0-d bool on the gradients' device; where it is true nothing may change, and
                the host must not wait to learn it. None on a CPU, where it is known.
        """


def paths() -> tuple[Path, ...]:
    """Return the ways there are on this machine, to be asked in turn; the last takes everything."""
    return (*_on_gpu(), Native(), Pure())


def _on_gpu() -> tuple[Path, ...]:
    if torch.version.cuda is None or not torch.cuda.is_available():
        return ()
    try:
        from cl_mofo.optim.triton_step import TritonStep
    except ImportError as error:
        _log.warning("MoFO takes its steps on a GPU without Triton, which is slower: %s", error)
        return ()
    return (TritonStep(),)
