"""A model's loss on the reference answers of a test set, in passes of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.batches import collate
from cl_mofo.data.encoded import encode_records
from cl_mofo.data.records import Record
from cl_mofo.data.tokenise import Encoder
from cl_mofo.engine.ranks import Ranks
from cl_mofo.evaluation.batching import batches, most_tokens
from cl_mofo.memory import explained
from cl_mofo.model import LanguageModel, summed_loss, supervised_logits
from cl_mofo.remedies import answering


def answer_loss(
    language_model: LanguageModel,
    encoder: Encoder,
    records: Sequence[Record],
    settings: EvaluationConfig,
    ranks: Ranks | None = None,
) -> float:
    """Return the mean loss per answer token (end of sequence included) over records, in nats.

    Ranks share the batches, and get the same figure as one would.
    """
    ranks = ranks or Ranks()
    encoded = encode_records(encoder, records)
    chunks = batches(encoded.lengths, 0, most_tokens(settings, encoder))
    losses: dict[int, tuple[float, int]] = {}
    advice = answering(settings.batch_size, encoder)
    with evaluating(language_model), explained("the loss on a test set is measured", advice):
        for number in range(ranks.rank, len(chunks), ranks.count):
            chosen = [encoded[i] for i in chunks[number].tolist()]
            batch = collate(chosen, encoder.eos).to(language_model.device)
            with language_model.autocast():
                logits, labels = supervised_logits(language_model.module, batch)
            losses[number] = summed_loss(logits, labels).item(), batch.supervised
    told = ranks.gather([[number, *loss] for number, loss in losses.items()])
    everyone = sorted(entry for rank in told for entry in rank)
    total: float = sum(loss for _, loss, _ in everyone)
    supervised: int = sum(tokens for _, _, tokens in everyone)
    return total / supervised


@contextmanager
def evaluating(language_model: LanguageModel) -> Iterator[None]:
    """Evaluation mode, no gradients, and a random state of its own, all undone at the end."""
    module = language_model.module
    was_training = module.training
    on_gpu = language_model.device.type == "cuda"
    devices = [language_model.device.index or 0] if on_gpu else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            module.train(was_training)
