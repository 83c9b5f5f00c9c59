"""What comes out of a run beside its figures: the model, and pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cl_mofo.errors import UserError
from cl_mofo.files import PARTIAL, synchronise_all
from cl_mofo.folder import RunFolder
from cl_mofo.report import curves, heat_map, parse_results

if TYPE_CHECKING:
    from cl_mofo.loop import Loop


def save_model(loop: Loop, folder: RunFolder) -> None:
    """Write the model and what strategies export beside it; all ranks call it at once.

    Raises:
        NotWrittenError: it cannot be written.
    """
    target, partial = folder.path / "model", folder.path / f"model{PARTIAL}"
    with loop.engine.whole() as module:
        if not loop.engine.ranks.first:
            return
        try:
            with folder.writing("model"):
                module.save_pretrained(partial, state_dict=loop.weights(module))
                loop.language_model.tokenizer.save_pretrained(partial)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(partial, target)
                for strategy in loop.strategies:
                    strategy.export(loop, module, folder.path)
                synchronise_all(folder.path)  # the checkpoints go as soon as it is there
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def draw(results: Mapping[str, Any], folder: RunFolder) -> None:
    """Draw the matrix and the curves of a run.

    Raises:
        NotWrittenError: they cannot be written.
    """
    figures = folder.path / "figures"
    parsed = parse_results(dict(results), folder.path / "results.json")
    try:
        heat_map(parsed, figures / "matrix.png")
        curves([parsed], figures / "curves.png")
    except UserError as error:  # no mistake of the user's, but of the disk
        raise folder.not_written(str(error)) from error
