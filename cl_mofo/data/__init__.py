"""Records, token sequences, batches, and Avalanche benchmarks made of them.

Importing this package loads neither torch nor avalanche; its names load when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_mofo.data.benchmark import CausalCollator, load_trace, make_benchmark
    from cl_mofo.data.records import Column, Record, read_folder

__all__ = ["CausalCollator", "Column", "Record", "load_trace", "make_benchmark", "read_folder"]

_HOME = {
    "CausalCollator": "cl_mofo.data.benchmark",
    "Column": "cl_mofo.data.records",
    "Record": "cl_mofo.data.records",
    "load_trace": "cl_mofo.data.benchmark",
    "make_benchmark": "cl_mofo.data.benchmark",
    "read_folder": "cl_mofo.data.records",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cl_mofo.data' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
