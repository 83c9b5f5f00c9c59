"""What tensors hold, counted from the tensors themselves: on a CPU as on a GPU."""

import gc

import torch


def storages() -> dict[str, list[int]]:
    """Return the bytes of each storage that tensors have, since `gc.freeze`, by kind of device."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    tensors = [getattr(t, "_local_tensor", t) for t in found]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    by_place = {}
    for tensor in tensors:
        if tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            by_place[tensor.device.type, storage.data_ptr()] = storage.nbytes()
    sizes: dict[str, list[int]] = {}
    for (kind, _), size in by_place.items():
        sizes.setdefault(kind, []).append(size)
    return sizes


def per_parameter(held: dict[str, list[int]], parameters: int) -> dict[str, float]:
    """Return what is held, in bytes per parameter.

    Apart from that, as GB, "buffers": what is larger than all weights. DeepSpeed's are of a fixed
    size.
    """
    bound = 8 * parameters
    found = {}
    for kind, sizes in held.items():
        found[kind] = round(sum(size for size in sizes if size <= bound) / parameters, 3)
        if large := sum(size for size in sizes if size > bound):
            found[f"{kind} buffers, GB"] = round(large / 1e9, 3)
    return found
