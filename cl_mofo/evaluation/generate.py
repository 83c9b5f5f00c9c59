"""Let a model answer a test set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.encoded import Encoded, encode_records
from cl_mofo.data.records import Record
from cl_mofo.data.tokenise import Encoder
from cl_mofo.engine.ranks import Ranks
from cl_mofo.evaluation.answers import Advance, Answer
from cl_mofo.evaluation.backend import Backend, Generated, Question, budget
from cl_mofo.evaluation.batching import batches, most_tokens
from cl_mofo.evaluation.decoding import Decoder, fits
from cl_mofo.evaluation.library import Library
from cl_mofo.evaluation.lookahead import farthest
from cl_mofo.evaluation.losses import evaluating
from cl_mofo.memory import explained
from cl_mofo.model import LanguageModel
from cl_mofo.remedies import answering
from cl_mofo.task import Settled


def backend_for(
    language_model: LanguageModel, encoder: Encoder, settings: EvaluationConfig
) -> Backend:
    """Return what generates answers of a model."""
    kind = Decoder if fits(language_model.module) else Library
    return kind(language_model, encoder, settings)


def answer(
    language_model: LanguageModel,
    encoder: Encoder,
    records: Sequence[Record],
    settings: EvaluationConfig,
    *,
    seed: int = 0,
    settled: Settled | None = None,
    advance: Advance = lambda examples, tokens: None,
    ranks: Ranks | None = None,
    known: Mapping[int, Answer] | None = None,
    keep: Callable[[Mapping[int, Answer]], None] = lambda answers: None,
) -> list[Answer]:
    """Answer prompts in batches of similar lengths; the answers keep the prompts' order.

    A batch has at most as many tokens as `settings.batch_size` examples of the full budgets: of
    short prompts many are answered at a time. No answer depends on the batches but by rounding,
    except that transformers' `generate`, where it is needed, samples for a whole batch at once. The
    random state outside is left as it was.

    With `settings.losses`, the loss on the reference answers is measured on the way, where prompts
    have the same ids in both; else it is left to `answer_loss`.

    Args:
        language_model: the model; it is put into evaluation mode, and back.
        encoder: truncates prompts; an answer has `encoder.answer_tokens` and one for its end.
        records: prompts and reference answers, also such as are read when they are asked for.
        settings: decoding and batch size.
        seed: what sampled decoding starts from.
        settled: tells when an answer is needed no further; by default it is to its end.
        advance: told of progress, by the first rank for all, whose tokens it estimates by its own.
        ranks: the processes that share the prompts; all get all answers.
        known: answers that are there already, by the records' numbers; a batch is asked again
            unless it has all of its own.
        keep: given the answers of each batch that is asked.
    """
    ranks = ranks or Ranks()
    encoded = encode_records(encoder, records)
    ahead = farthest(budget(encoder))
    most = most_tokens(settings, encoder) + settings.batch_size * ahead
    chunks = batches(encoded.prompt_lengths, budget(encoder) + ahead, most)
    answers = _whole_batches(known or {}, chunks)
    if answers and ranks.first:
        advance(len(answers), 0)
    advice = answering(settings.batch_size, encoder)
    with evaluating(language_model), explained("test examples are answered", advice):
        backend = backend_for(language_model, encoder, settings)
        for number in range(ranks.rank, len(chunks), ranks.count):
            chunk = chunks[number].tolist()
            if not answers.keys().isdisjoint(chunk):
                continue
            asked = [
                _question(i, encoded, encoder, settings, seed, _of(settled, records, i))
                for i in chunk
            ]
            found = [
                _answer(question, generated, encoder, settings)
                for question, generated in zip(asked, backend.generate(asked), strict=True)
            ]
            new = dict(zip(chunk, found, strict=True))
            answers |= new
            keep(new)
            abreast = chunks[number : number + ranks.count] if ranks.first else []
            advance(sum(map(len, abreast)), sum(a.tokens for a in found) * len(abreast))
    told = ranks.gather([[i, *astuple(found)] for i, found in answers.items()])
    everyone = {i: Answer(*fields) for rank in told for i, *fields in rank}
    return [everyone[i] for i in range(len(records))]


def _of(settled: Settled | None, records: Sequence[Record], i: int) -> Callable[[str], bool] | None:
    if settled is None:
        return None
    reference = records[i]["answer"]
    return lambda answer: settled(answer, reference)


def _question(
    i: int,
    encoded: Encoded,
    encoder: Encoder,
    settings: EvaluationConfig,
    seed: int,
    settled: Callable[[str], bool] | None,
) -> Question:
    reference = None
    if settings.losses and not encoder.joint:
        example = encoded[i]
        reference = example.ids[len(example) - example.supervised :]
    return Question(encoded.prompt(i), reference, _seed(seed, i), settled)


def _answer(
    question: Question, generated: Generated, encoder: Encoder, settings: EvaluationConfig
) -> Answer:
    ids = generated.ids
    text = encoder.decode(ids, skip_special_tokens=settings.skip_special_tokens)
    finished = encoder.eos in ids
    if generated.loss is None or not math.isfinite(generated.loss):  # which JSON does not hold
        return Answer(text, finished, len(ids), generated.settled)
    supervised = len(question.reference or ())
    return Answer(text, finished, len(ids), generated.settled, generated.loss, supervised)


def _whole_batches(known: Mapping[int, Answer], chunks: Iterable[Any]) -> dict[int, Answer]:
    batches = [chunk.tolist() for chunk in chunks] if known else []
    return {i: known[i] for batch in batches if known.keys() >= {*batch} for i in batch}


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
