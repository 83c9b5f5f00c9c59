"""Continual fine-tuning of causal language models with MoFO and its companions.

Importing this package loads neither torch nor transformers nor avalanche; names load when used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_mofo.data import load_trace
    from cl_mofo.evaluation import ResultMatrix, score
    from cl_mofo.experiment import resume, run
    from cl_mofo.optim import MoFO
    from cl_mofo.strategy import Strategy
    from cl_mofo.sweep import run_sweep
    from cl_mofo.task import Task
    from cl_mofo.tuning import tune

__version__ = "0.1.0"
__all__ = [
    "MoFO",
    "ResultMatrix",
    "Strategy",
    "Task",
    "load_trace",
    "resume",
    "run",
    "run_sweep",
    "score",
    "tune",
]

_HOME = {
    "MoFO": "cl_mofo.optim",
    "ResultMatrix": "cl_mofo.evaluation",
    "Strategy": "cl_mofo.strategy",
    "Task": "cl_mofo.task",
    "load_trace": "cl_mofo.data",
    "resume": "cl_mofo.experiment",
    "run": "cl_mofo.experiment",
    "run_sweep": "cl_mofo.sweep",
    "score": "cl_mofo.evaluation",
    "tune": "cl_mofo.tuning",
}

# In a checkout `tasks/`, `strategies/` and `runs/` lie beside this folder, not in it. Python
# started there may find this folder before an installed copy; it must still find its own parts.
_here = Path(__file__).parent
if not (_here / "tasks").is_dir() and (_here.parent / "tasks" / "__init__.py").is_file():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cl_mofo' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
