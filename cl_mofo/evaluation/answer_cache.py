"""Answers that the same weights have given before, kept in the user's cache.

What answers depend on makes the name of their file: weights, data, decoding, hardware, versions and
this package's own code. So a sweep tests the model before training once, and a run that is made
again generates nothing. A file that is damaged counts for nothing and is written anew; no fault of
the disk is one of the run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_mofo.cachedir import cache_folder, source_digest, trim, used
from cl_mofo.evaluation.answers import Answer
from cl_mofo.files import DamagedError, read_checked, write_checked
from cl_mofo.manifest import cpu_name, versions

if TYPE_CHECKING:
    import torch

    from cl_mofo.data.tokenise import Encoder
    from cl_mofo.model import LanguageModel

KIND = "answers"
MOST = 1 << 30
"""Bytes of all answers kept; the longest unused go first."""


def weights_digest(module: torch.nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, their names, types and shapes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        content = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def key_of(
    language_model: LanguageModel,
    weights: str,
    encoder: Encoder,
    records: str,
    settings: Mapping[str, Any],
    settled: Callable[..., Any] | None = None,
) -> str | None:
    """Return a hash of all that a test set's answers depend on; None if not all can be known.

    Args:
        language_model: the model.
        weights: its `weights_digest`.
        encoder: what prompts are encoded by.
        records: the digest of the test set (`cl_mofo.data.encoded.digest_of`).
        settings: how it is answered, as JSON can hold it.
        settled: a task's own, if it may cut answers off.
    """
    import torch

    module, tokenizer = language_model.module, language_model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not type(module).__module__.startswith("transformers."):
        return None  # code of others, which no hash of ours knows
    try:
        cuts = settled and hashlib.sha256(Path(inspect.getfile(settled)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None
    config = {k: v for k, v in module.config.to_dict().items() if not k.startswith("_name")}
    device, on_gpu = language_model.device, language_model.device.type == "cuda"
    made_of = {
        "weights": weights,
        "model": [type(module).__name__, module.config._attn_implementation, config],
        "tokenizer": [backend.to_str(), encoder.eos, encoder.bos],
        "budgets": [encoder.prompt_tokens, encoder.answer_tokens, encoder.joint],
        "records": records,
        "settings": dict(settings),
        "settled": cuts,
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "computing": [
            device.type,
            str(language_model.compute_dtype),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        ],
        "versions": {"python": platform.python_version()} | versions(),
        "code": source_digest(),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()


def find(key: str, examples: int) -> tuple[list[Answer], float | None] | None:
    """Return a test set's answers and the mean loss on it, if they are there and whole.

    Args:
        key: as `key_of` returned it.
        examples: how many the test set has.
    """
    folder = cache_folder(KIND)
    if folder is None:
        return None
    try:
        found = read_checked(_file(folder, key))
        answers = [Answer.of(row) for row in found["answers"]]
        loss = found["loss"]
    except (DamagedError, LookupError, TypeError):
        return None
    if found.get("key") != key or len(answers) != examples:
        return None
    used(_file(folder, key))
    return answers, loss


def keep(key: str, answers: Sequence[Answer], loss: float | None) -> None:
    """Keep a test set's answers and the mean loss on it, if there is room."""
    folder = cache_folder(KIND)
    if folder is None:
        return
    rows = [astuple(answer) for answer in answers]
    with suppress(OSError):
        write_checked(_file(folder, key), {"key": key, "loss": loss, "answers": rows})
        trim(folder, MOST)


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"
