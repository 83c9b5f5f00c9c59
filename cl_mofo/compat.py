"""Make `import torchvision` work beside a CPU build of torch.

PyPI has only a CUDA build of torchvision. Beside a CPU torch its import fails because the operators
it registers fake kernels for are missing, and avalanche, peft and some of transformers' models
import torchvision. Defining the operators' schemas is enough: nothing here ever calls them.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def repair_torchvision() -> Any:
    """Import torchvision, defining its missing operators if it has to be.

    Call it before transformers or avalanche are imported. It changes nothing where torchvision
    imports by itself, or is not installed.

    Returns:
        The `torch.library.Library` that holds the definitions (they live as long as it does), or
        None if none were needed.

    Raises:
        RuntimeError: torchvision fails to import for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    importlib.import_module("torchvision")
    return library
