"""Tokens read ahead: what is foretold, how far, and that answers stay what they are."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cl_mofo.config import EvaluationConfig
from cl_mofo.data.tokenise import Encoder
from cl_mofo.evaluation import decoding, grouped, lookahead
from cl_mofo.evaluation.backend import Question
from cl_mofo.evaluation.context import Context
from cl_mofo.evaluation.decoding import Decoder
from cl_mofo.evaluation.library import Library
from cl_mofo.evaluation.lookahead import CONTEXT, FARTHEST, PASS, Lookup, agreed, drafts
from cl_mofo.evaluation.losses import evaluating
from tests.test_decoding import Model, Numbers, questions

IDS = st.lists(st.integers(0, 2), max_size=40)


def searched(ids, most):
    """The tokens that followed the last CONTEXT ones where they stood before, found one by one."""
    ids, found = list(ids), []
    key = ids[-CONTEXT:]
    starts = [i for i in range(len(ids) - CONTEXT) if ids[i : i + CONTEXT] == key]
    if len(ids) < CONTEXT or not starts:
        return []
    place = starts[-1] + CONTEXT
    for _ in range(most):
        ids.append(ids[place])
        found.append(ids[-1])
        place += 1
    return found


@given(ids=IDS, more=IDS, most=st.integers(0, 20))
def test_what_is_foretold_is_what_followed_last_time(ids, more, most):
    lookup, streak = Lookup(ids), 0
    for token in more:
        streak = streak + 1 if searched(ids, 1) == [token] else 0
        lookup.add(token)
        ids = [*ids, token]
    assert lookup.foretell(most) == searched(ids, most)
    assert lookup.streak == streak


class Expected:
    """A row of which so many tokens are expected to be right."""

    def __init__(self, streak):
        self.streak = streak

    def foretell(self, most):
        return list(range(most))


@given(
    streaks=st.lists(st.none() | st.integers(0, 40), min_size=1, max_size=20),
    room=st.integers(0, 40),
    most=st.integers(0, FARTHEST - 1),
)
def test_as_much_is_read_ahead_as_makes_most_for_its_cost(streaks, room, most):
    rows = [None if streak is None else Expected(streak) for streak in streaks]
    found = [len(draft) for draft in drafts(rows, [room] * len(rows), most)]
    expected = [min(streak or 0, room) for streak in streaks]

    def rate(ahead):
        tokens = sum(1 + min(each, ahead) for each in expected)
        return tokens / (PASS + len(rows) * (1 + ahead))

    best = max(map(rate, range(most + 1)))
    width = max(found)
    assert rate(width) == pytest.approx(best)
    assert found == [min(each, width) for each in expected]


def test_one_row_that_repeats_itself_is_read_far_ahead_and_many_that_do_not_are_not():
    assert [len(draft) for draft in drafts([Expected(40)], [40], 15)] == [15]
    crowd = [Expected(40), *(Expected(0) for _ in range(30))]
    assert not any(drafts(crowd, [40] * 31, 15))


@given(draft=IDS, chosen=IDS)
def test_a_draft_holds_up_to_its_first_wrong_token(draft, chosen):
    right = agreed(draft, chosen)
    assert draft[:right] == chosen[:right]
    assert right == min(len(draft), len(chosen)) or draft[right] != chosen[right]


def llama():
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 24}
    return Model(transformers.LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def parrot():
    """A model that hears its latest token alone, and so comes to say the same over and over."""
    made = llama()
    for layer in made.module.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    return made


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_what_is_taken_back_was_never_read(model, data):
    """Rows read on, take back and leave as they like: their logits are a plain pass's."""
    ids = st.integers(0, 39)
    texts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=4))
    texts.sort(key=len, reverse=True)
    limit = len(texts[0]) + 11
    with evaluating(model), torch.no_grad():
        context = Context(model, texts, room=12, ahead=3)
        context.read_prompts()
        for _ in range(15):
            width = data.draw(st.integers(1, 4))
            if max(map(len, texts)) + width > limit:
                break
            rows = st.lists(ids, min_size=width, max_size=width)
            new = [data.draw(rows) for _ in texts]
            logits = context.read(torch.tensor(new))
            for text, row, found in zip(texts, new, logits, strict=True):
                plain = model.module(torch.tensor([text + row])).logits[0, len(text) :]
                torch.testing.assert_close(found, plain, atol=1e-9, rtol=0)
            back = [data.draw(st.integers(0, width - 1)) for _ in texts]
            context.forget(back)
            texts = [
                text + row[: width - gone] for text, row, gone in zip(texts, new, back, strict=True)
            ]
            if len(texts) > 1 and data.draw(st.booleans()):
                context.keep([0, *range(2, len(texts))])
                del texts[1]


@pytest.mark.parametrize("config", [{}, {"decoding": "sample", "temperature": 0.05}])
def test_answers_are_the_same_in_fewer_passes(parrot, monkeypatch, config):
    passes = []
    forward = parrot.module.forward
    monkeypatch.setattr(
        parrot.module, "forward", lambda ids, **k: passes.append(ids.shape[1]) or forward(ids, **k)
    )
    decoder = Decoder(parrot, Encoder(Numbers(-1), 16, 60), EvaluationConfig(**config))
    asked = questions()[:3]
    with evaluating(parrot):
        fast = decoder.generate(asked)
        few = len(passes)
        monkeypatch.setattr(lookahead, "FARTHEST", 1)
        assert decoder.generate(asked) == fast
    assert few < 0.8 * (len(passes) - few)


class Guess(Lookup):
    """Foretells confidently, of every other row nothing right."""

    def __init__(self, ids):
        super().__init__(ids)
        self._wrong = len(self._ids) % 2

    streak = property(lambda self: 3, lambda self, value: None)

    def foretell(self, most):
        return [7] * most if self._wrong else super().foretell(most)


@pytest.mark.parametrize("config", [{}, {"decoding": "sample", "temperature": 1.5}])
@pytest.mark.parametrize("leave", [2, decoding.LEAVE])
def test_gaps_are_closed_when_the_room_is_used_up(model, monkeypatch, config, leave):
    closed = []
    close = Context._close_gaps
    monkeypatch.setattr(Context, "_close_gaps", lambda self: closed.append(close(self)))
    monkeypatch.setattr(decoding, "LEAVE", leave)
    monkeypatch.setattr(decoding, "Lookup", Guess)
    decoder = Decoder(model, Encoder(Numbers(-1), 16, 60), EvaluationConfig(**config))
    with evaluating(model):
        found = decoder.generate(questions())
        assert closed or config  # what is drawn is seldom foretold, by no row
        monkeypatch.setattr(lookahead, "FARTHEST", 1)
        assert found == decoder.generate(questions())


WINDOW = {"attention_types": [[["local"], 2]], "window_size": 6, "max_position_embeddings": 45}
OTHERS = {
    "the mask is a buffer": lambda: transformers.GPTNeoConfig(
        vocab_size=40, hidden_size=32, num_layers=2, num_heads=4, **WINDOW
    ),
    "it attends by its own code": lambda: transformers.FalconConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    ),
    "a window": lambda: transformers.MistralConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_ways_answer_as_transformers_has_them(name, monkeypatch):
    other = Model(OTHERS[name]())
    monkeypatch.setattr(decoding, "Lookup", Guess)
    settings = other, Encoder(Numbers(0), 16, 30), EvaluationConfig(losses=False)
    asked = [Question(question.prompt) for question in questions()]
    with evaluating(other):
        ours, theirs = (kind(*settings).generate(asked) for kind in (Decoder, Library))
    assert decoding.fits(other.module)
    assert not Context(other, [[1]], 4).forgets  # a gap would count as distance
    assert [one.ids for one in ours] == [one.ids for one in theirs]


def test_so_many_logits_are_computed_at_once_and_no_more(parrot, monkeypatch):
    widths = set()
    forward = parrot.module.forward
    monkeypatch.setattr(
        parrot.module, "forward", lambda ids, **k: widths.add(ids.shape[1]) or forward(ids, **k)
    )
    decoder = Decoder(parrot, Encoder(Numbers(-1), 16, 60), EvaluationConfig())
    for most, widest in ((1, 1), (3 * 40, 3)):
        monkeypatch.setattr(decoding, "MOST_LOGITS", most)
        with evaluating(parrot):
            widths.clear()
            decoder.generate([Question([7])])
        assert max(widths) == widest


def test_no_position_is_beyond_the_longest_answer(monkeypatch):
    """A table of positions has no row for what is read ahead beside a row that is all but done."""
    config = {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 4 + 30}
    gpt2 = Model(transformers.GPT2Config(**config))
    gpt2.module.transformer.h[0].attn.c_proj.weight.data.zero_()
    monkeypatch.setattr(decoding, "Lookup", Guess)
    monkeypatch.setattr(decoding, "LEAVE", 2)
    decoder = Decoder(gpt2, Encoder(Numbers(-1), 16, 30), EvaluationConfig())
    asked = [Question([1, 2, 3, 4]), Question([5, 6, 7])]
    with evaluating(gpt2):
        found = decoder.generate(asked)
        monkeypatch.setattr(lookahead, "FARTHEST", 1)
        assert found == decoder.generate(asked)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("positions", [1, 2, FARTHEST, FARTHEST + 1])
@pytest.mark.parametrize("masks", [3, 1, 0])
def test_heads_that_share_keys_attend_as_transformers_has_them(kv_heads, positions, masks):
    torch.manual_seed(0)
    layer = SimpleNamespace(num_key_value_groups=4 // kv_heads, is_causal=True, training=False)
    query = torch.randn(3, 4, positions, 8, dtype=torch.float64)
    key, value = torch.randn(2, 3, kv_heads, 20, 8, dtype=torch.float64)
    mask = (torch.rand(masks, 1, positions, 20) < 0.5).index_fill(3, torch.tensor(0), True)
    given = layer, query, key, value, mask if masks else None
    expected, _ = sdpa_attention_forward(*given, scaling=0.3)
    found, _ = grouped.grouped_attention(*given, scaling=0.3)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_keys_are_not_copied_for_a_few_positions(model, monkeypatch):
    heads = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **options: heads.append(k.shape[1]) or attend(q, k, v, **options),
    )
    with evaluating(model), torch.no_grad():
        for attending in (nullcontext, grouped.grouped):
            context = Context(model, [[1, 2, 3], [4]], room=4)
            with attending():
                context.read_prompts()
                heads.clear()
                context.read(torch.tensor([[5, 6], [7, 8]]))
            assert set(heads) == ({4} if attending is nullcontext else {2})
    assert transformers.AttentionInterface()["sdpa"] is sdpa_attention_forward
