"""What the process loads that forks the tests' (forked.py): quietly, as the command line does."""

import importlib
import os
import sys
from contextlib import redirect_stdout, suppress

import cl_mofo.cli

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
for name in LOADED:
    importlib.import_module(name)
