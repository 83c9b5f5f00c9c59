"""What the process loads that forks the tests' (forked.py): quietly, as the command line does."""

import gc
import importlib
import os
import sys
from contextlib import redirect_stdout, suppress

import cl_mofo.cli
from cl_mofo.compat import repair_torchvision

LOADED = [
    "deepspeed.ops",
    "matplotlib.pyplot",
    "peft",
    "pyarrow.parquet",
    "sacrebleu",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "cl_mofo.engine.fsdp",
    "cl_mofo.engine.zero",
    "cl_mofo.experiment",
    "cl_mofo.sequence",
    "tests.engine_cases",
]

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
sys.argv = ["cl-mofo", "--version"]
with open(os.devnull, "w") as nothing, redirect_stdout(nothing), suppress(SystemExit):
    cl_mofo.cli.main()
repair_torchvision()
for name in LOADED:
    try:
        importlib.import_module(name)
    except ImportError as error:  # of which the server would say nothing
        raise RuntimeError(name) from error
gc.collect()
gc.freeze()  # no fork looks for garbage in it, which would copy its pages
