"""Load a causal language model and its tokenizer: safetensors only, by path or hub name."""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch.nn import functional as F

from cl_mofo.attention import within_documents
from cl_mofo.compat import repair_torchvision
from cl_mofo.config import TINY, ModelConfig
from cl_mofo.data.batches import IGNORED, MicroBatch
from cl_mofo.downloads import check_index
from cl_mofo.errors import UserError
from cl_mofo.memory import explained
from cl_mofo.paths import expand
from cl_mofo.remedies import loading


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model: the module, its tokenizer, and where and in what type it computes."""

    module: Any
    tokenizer: Any
    device: torch.device
    compute_dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run."""
        return torch.autocast(
            self.device.type,
            dtype=torch.bfloat16,
            enabled=self.compute_dtype == torch.bfloat16,
        )


def load_model(config: ModelConfig, device_index: int | None = None) -> LanguageModel:
    """Load the model in float32 onto its device.

    Args:
        config: which, and where.
        device_index: which of several accelerators; the current one by default.

    Raises:
        UserError: it cannot be found or loaded, lacks weights, does not fit its tokenizer, or CUDA
            is asked for and not there.
        OutOfMemoryError: the host or the device has not enough memory for it.
    """
    device = _device(config.device, device_index)
    compute = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        config.compute_dtype, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    tokenizer = load_tokenizer(config)
    check_index(config.path, _name(config.path), config.revision)
    import transformers

    module, info = _from_pretrained(
        transformers.AutoModelForCausalLM,
        config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    _check_weights(config.path, module, info)
    _check_fit(config.path, module, tokenizer)
    # What the checkpoint's author preferred for chatting must not change how answers are decoded.
    module.generation_config = transformers.GenerationConfig()
    if config.gradient_checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with explained("the model is moved to its device", loading):
        return LanguageModel(module.to(device), tokenizer, device, compute)


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the model's tokenizer.

    Raises:
        UserError: it cannot be found or loaded, or loses text.
    """
    repair_torchvision()
    import transformers

    tokenizer = _from_pretrained(transformers.AutoTokenizer, config)
    probe = "Hello, world: 12"
    ids = tokenizer(probe, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() != probe:
        raise UserError(
            f"model '{config.path}': its tokenizer does not give a text back ({probe!r} comes back "
            f"as {tokenizer.decode(ids)!r}). Are tokenizer.json and tokenizer_config.json there?"
        )
    return tokenizer


def _check_weights(path: str, module: Any, info: Any) -> None:
    absent = sorted(set(info["missing_keys"]) | {str(key) for key in info["mismatched_keys"]})
    if absent:
        raise UserError(
            f"model '{path}': the checkpoint lacks {len(absent)} of the model's tensors, or has "
            f"them in other shapes ({', '.join(absent[:3])}). It is incomplete, or its config.json "
            f"is another model's"
        )


def _check_fit(path: str, module: Any, tokenizer: Any) -> None:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model '{path}': its tokenizer has no end-of-sequence token, so no answer could end; "
            f"set eos_token in its tokenizer_config.json"
        )
    rows = module.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(
            f"model '{path}': its tokenizer has ids up to {largest}, its embedding {rows} rows. "
            f"The tokenizer is another model's"
        )


def _from_pretrained(kind: Any, config: ModelConfig, **options: Any) -> Any:
    from safetensors import SafetensorError

    name = _name(config.path)
    options |= {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    absent = False
    try:
        with explained("the model is loaded", loading):
            try:
                return kind.from_pretrained(name, local_files_only=True, **options)
            except OSError:
                absent = not Path(name).is_dir()
                if not absent or not _hub_answers():
                    raise
                absent = False
                return kind.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if absent:
            raise UserError(
                f"model '{config.path}' is neither a folder nor to be had from the hub now; give a "
                f"folder with its safetensors: --model PATH (or --model {TINY} for the embedded "
                f"model)"
            ) from error
        reason = next(iter(str(error).splitlines()), repr(error))
        raise UserError(f"model '{config.path}' cannot be loaded: {reason}") from error


def _hub_answers() -> bool:
    """Tell whether the hub's name resolves; its client would retry for half a minute if not."""
    if getproxies():
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def _device(wanted: str, index: int | None) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "recipe key model.device: 'cuda' was asked for, but torch finds no CUDA GPU"
        )
    on_gpu = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    if not on_gpu:
        return torch.device("cpu")
    return torch.device("cuda") if index is None else torch.device("cuda", index)


def _name(path: str) -> str:
    if path == TINY:
        from cl_mofo import mini

        return str(mini.tiny_path())
    expanded = expand(path, "model.path")
    looks_local = path.startswith((".", "/", "~", "$")) or path.count("/") > 1
    if looks_local and not expanded.is_dir():
        raise UserError(f"model '{path}': there is no such folder")
    if expanded.is_dir():
        if not (expanded / "config.json").is_file():
            raise UserError(f"model '{path}': the folder has no config.json; it is no checkpoint")
        return str(expanded)
    return path


def check_positions(language_model: LanguageModel, tokens: int, where: str) -> None:
    """Refuse sequences longer than the model's positions.

    Raises:
        UserError: the model has fewer positions than `tokens`.
    """
    limit = getattr(language_model.module.config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise UserError(
            f"{where}: prompt and answer may take {tokens} tokens, but the model has {limit} "
            f"positions; lower tasks.prompt_tokens or tasks.answer_tokens"
        )


@contextmanager
def without_dropout(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, but that gradient checkpointing, which asks for training mode, goes on."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    for part, was_training in modes:
        part.training = was_training and getattr(part, "gradient_checkpointing", False)
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


def supervised_logits(
    module: Any, batch: MicroBatch, forward: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits that predict supervised labels, and those labels.

    Only these positions go through the model's head, which for a large vocabulary costs more memory
    than the rest of the forward pass; of padded rows, those from the first supervised one on.

    Args:
        module: a causal language model of transformers'.
        batch: on its device. If it is packed, a backward pass with gradient checkpointing has to
            be made `within_documents` too.
        forward: what to call; the module itself by default.

    Returns:
        logits [rows, positions, vocabulary], labels [rows, positions]
    """
    forward, keeps = forward or module, keeps_logits(module)
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.documents is not None:
        kept = batch.documents.predicting
        inputs |= {"position_ids": batch.documents.positions, "documents": batch.documents}
        with within_documents(module):
            logits = forward(**inputs, **({"logits_to_keep": kept} if keeps else {})).logits
        # The row's last token predicts nothing; it stands for a row of one token.
        labels = batch.labels[:, (kept + 1) % batch.labels.shape[1]]
        return logits if keeps else logits[:, kept], labels
    if batch.masked:
        inputs["attention_mask"] = batch.attention_mask
    start = max(batch.first - 1, 0)
    if keeps:
        logits = forward(**inputs, logits_to_keep=batch.input_ids.shape[1] - start).logits
    else:
        logits = forward(**inputs).logits[:, start:]
    return logits[:, :-1], batch.labels[:, start + 1 :]


def keeps_logits(module: torch.nn.Module) -> bool:
    """Tell whether a model can be told which positions' logits are wanted."""
    return _takes_logits_to_keep(type(module).forward)


@cache
def _takes_logits_to_keep(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy summed over supervised labels, computed in float32."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
