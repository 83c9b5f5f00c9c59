"""Tensors on their way to a GPU, without a wait."""

from __future__ import annotations

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
