"""Tensors on their way to a GPU and back, without a wait."""

from __future__ import annotations

from typing import Any

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; on its way from the host to a GPU the host waits for nothing.

    A copy from pageable memory first waits for all that the GPU has queued, whatever `non_blocking`
    says (CUDA's driver API, "API synchronization behavior"), and torch's sync debug mode does not
    see it. Pinned memory is torch's own and new for each call: it is not used again before the
    copy from it has ended.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Arriving:
    """A tensor's values on their way to the host, in pinned memory if they come from a GPU.

    Reading them waits for their own copy, and not for work that the GPU was given later.

    Args:
        tensor: on any device.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._values = tensor.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Any:
        """Wait for the values, and return them as a list."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
