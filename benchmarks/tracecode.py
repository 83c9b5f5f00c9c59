"""TRACE's own collator, from a copy of its code that the user has."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.setting import Setting
from cl_mofo.data.records import Record

COLLATOR = "utils/data/data_collator.py"


def collator(code: Path, setting: Setting) -> Callable[[Sequence[Record]], dict[str, Any]]:
    """Return TRACE's `DataCollator` with the tokenizer and the largest budgets of a setting.

    Raises:
        SystemExit: it is not there, or cannot be imported.
    """
    path = code / COLLATOR
    if not path.is_file():
        raise SystemExit(f"--trace {code}: there is no {COLLATOR}")
    sys.path.insert(0, str(code))
    try:
        spec = importlib.util.spec_from_file_location("trace_data_collator", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise SystemExit(f"--trace {code}: {COLLATOR} cannot be imported: {error}") from error
    finally:
        sys.path.remove(str(code))
    tokenizer = copy.deepcopy(setting.language_model.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token  # they take it for granted
    theirs = module.DataCollator(
        tokenizer,
        padding="longest",
        max_prompt_len=max(plan.prompt_tokens for plan in setting.plans),
        max_ans_len=max(plan.answer_tokens for plan in setting.plans),
        pad_to_multiple_of=8,
        inference=False,
    )
    tensors = ("input_ids", "attention_mask", "labels")

    def collate(records: Sequence[Record]) -> dict[str, Any]:
        made = theirs([dict(record) for record in records])
        return {name: made[name] for name in tensors}

    return collate
