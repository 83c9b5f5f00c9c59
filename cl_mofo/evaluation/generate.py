"""Let a model answer a test set, and measure its loss on the reference answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.batches import collate, sorted_chunks
from cl_mofo.data.records import Record
from cl_mofo.data.tokenise import Encoder, Example
from cl_mofo.engine.ranks import Ranks
from cl_mofo.memory import explained
from cl_mofo.model import LanguageModel, summed_loss, supervised_logits
from cl_mofo.remedies import answering

Advance = Callable[[int, int], None]
"""Told how many more examples are done, and how many tokens were generated for them."""


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Args:
        text: what was generated before the end of sequence.
        finished: whether the end of sequence came within the budget.
        tokens: tokens generated, the end of sequence included.
    """

    text: str
    finished: bool
    tokens: int


def answer(
    language_model: LanguageModel,
    encoder: Encoder,
    prompts: Sequence[str],
    settings: EvaluationConfig,
    *,
    seed: int = 0,
    advance: Advance = lambda examples, tokens: None,
    ranks: Ranks | None = None,
    known: Mapping[int, Answer] | None = None,
    keep: Callable[[Mapping[int, Answer]], None] = lambda answers: None,
) -> list[Answer]:
    """Answer prompts in batches of similar lengths; the answers keep the prompts' order.

    Prompts are padded on the left. Each batch draws from a seed of its own, so that ranks, which
    share the batches, change no answer. The random state outside is left as it was.

    Of a prompt nothing is kept but its length, so that a test set may be larger than memory: each
    is read and encoded twice, once for its length and once for its batch.

    Args:
        language_model: the model; it is put into evaluation mode, and back.
        encoder: truncates prompts; an answer has `encoder.answer_tokens` and one for its end.
        prompts: texts, also such as are read when they are asked for (`cl_mofo.data.Column`).
        settings: decoding and batch size.
        seed: what sampled decoding starts from.
        advance: told of progress, by the first rank for all, whose tokens it estimates by its own.
        ranks: the processes that share the prompts; all get all answers.
        known: answers that are there already, by the prompts' numbers; a batch is asked again
            unless it has all of its own.
        keep: given the answers of each batch that is asked.
    """
    from transformers import GenerationConfig

    sampling = settings.decoding == "sample"
    config = GenerationConfig(
        # TRACE counts the end of sequence into the budget; otherwise the answer has it all.
        max_new_tokens=encoder.answer_tokens + (0 if encoder.joint else 1),
        do_sample=sampling,
        temperature=settings.temperature if sampling else None,
        top_k=(settings.top_k or 0) if sampling else None,  # None would mean transformers' 50
        eos_token_id=encoder.eos,
        pad_token_id=encoder.eos,
    )
    ranks = ranks or Ranks()
    chunks = sorted_chunks((len(encoder.prompt(prompt)) for prompt in prompts), settings.batch_size)
    answers = _whole_batches(known or {}, chunks)
    if answers and ranks.first:
        advance(len(answers), 0)
    advice = answering(settings.batch_size, encoder)
    with _evaluating(language_model), explained("test examples are answered", advice):
        for number in range(ranks.rank, len(chunks), ranks.count):
            chunk = chunks[number].tolist()
            if not answers.keys().isdisjoint(chunk):
                continue
            torch.manual_seed(_seed(seed, number))
            ids = [encoder.prompt(prompts[i]) for i in chunk]
            width = max(map(len, ids))
            rows = [[encoder.eos] * (width - len(row)) + row for row in ids]
            mask = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
            with language_model.autocast():
                output = language_model.module.generate(
                    input_ids=torch.tensor(rows, device=language_model.device),
                    attention_mask=torch.tensor(mask, device=language_model.device),
                    generation_config=config,
                )
            for i, generated in zip(chunk, output[:, width:].tolist(), strict=True):
                finished = encoder.eos in generated
                text = encoder.decode(generated, skip_special_tokens=settings.skip_special_tokens)
                tokens = generated.index(encoder.eos) + 1 if finished else len(generated)
                answers[i] = Answer(text, finished, tokens)
            keep({i: answers[i] for i in chunk})
            abreast = chunks[number : number + ranks.count] if ranks.first else []
            advance(sum(map(len, abreast)), sum(answers[i].tokens for i in chunk) * len(abreast))
    told = ranks.gather([[i, *astuple(answered)] for i, answered in answers.items()])
    everyone = {i: Answer(*fields) for rank in told for i, *fields in rank}
    return [everyone[i] for i in range(len(prompts))]


def _whole_batches(known: Mapping[int, Answer], chunks: Iterable[Any]) -> dict[int, Answer]:
    batches = [chunk.tolist() for chunk in chunks] if known else []
    return {i: known[i] for batch in batches if known.keys() >= {*batch} for i in batch}


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def answer_loss(
    language_model: LanguageModel,
    encoder: Encoder,
    records: Sequence[Record],
    settings: EvaluationConfig,
    ranks: Ranks | None = None,
) -> float:
    """Return the mean loss per answer token (end of sequence included) over records, in nats.

    Ranks share the batches, and get the same figure as one would. As by `answer`, each record is
    encoded twice and none is kept.
    """
    ranks = ranks or Ranks()

    def encoded(record: Record) -> Example:
        return encoder.encode(record["prompt"], record["answer"])

    chunks = sorted_chunks((len(encoded(record)) for record in records), settings.batch_size)
    losses: dict[int, tuple[float, int]] = {}
    advice = answering(settings.batch_size, encoder)
    with _evaluating(language_model), explained("the loss on a test set is measured", advice):
        for number in range(ranks.rank, len(chunks), ranks.count):
            chosen = [encoded(records[i]) for i in chunks[number].tolist()]
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
def _evaluating(language_model: LanguageModel) -> Iterator[None]:
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
