"""Nothing is generated twice, and what is damaged, or of anything else, is generated anew."""

import copy
import errno

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cl_mofo
from cl_mofo import examine, mini
from cl_mofo.data.encoded import digest_of
from cl_mofo.data.tokenise import Encoder
from cl_mofo.errors import TrainingError
from cl_mofo.evaluation import answer_cache
from cl_mofo.evaluation.answer_cache import find, keep, key_of, weights_digest
from cl_mofo.evaluation.answers import Answer
from cl_mofo.mappings import merge
from tests.small_run import SMALL
from tests.soak import differences

RECIPE = merge(
    SMALL,
    {"evaluation": {"cache": True}, "checkpoint": {"every_steps": None}, "save_model": False},
)
ANSWERS = [
    Answer("A", finished=True, tokens=2, loss=0.1 + 0.2, supervised=2),
    Answer("é\ud800\n", finished=False, tokens=5, settled=True),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache, empty."""
    made = tmp_path / "cache"
    made.mkdir()
    monkeypatch.setattr(answer_cache, "cache_folder", lambda kind: made)
    return made


@pytest.fixture
def asked(monkeypatch):
    """How many test sets the model is asked."""
    times = []
    answer = examine.answer

    def counted(*args, **kwargs):
        times.append(args)
        return answer(*args, **kwargs)

    monkeypatch.setattr(examine, "answer", counted)
    return times


def test_a_run_that_is_made_again_generates_nothing(folder, asked, tmp_path):
    cl_mofo.run(RECIPE, out=tmp_path / "first")
    assert len(asked) == 5
    files = {file: file.read_bytes() for file in folder.iterdir()}
    damaged = min(files)
    content = bytearray(files[damaged])
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    cl_mofo.run(RECIPE, out=tmp_path / "second")
    assert len(asked) == 5 + 1
    assert {file: file.read_bytes() for file in folder.iterdir()} == files
    assert differences(tmp_path / "first", tmp_path / "second") == []
    log = (tmp_path / "second" / "run.log").read_text()
    assert log.count("are from the cache") == 4


def test_what_comes_before_training_is_shared_and_what_comes_after_is_not(folder, asked, tmp_path):
    cl_mofo.run(RECIPE, out=tmp_path / "first")
    cl_mofo.run(RECIPE | {"strategy": "sequential", "seed": 7}, out=tmp_path / "other")
    assert len(asked) == 5 + 3


def test_sampled_answers_are_of_their_seed(folder, asked, tmp_path):
    sampling = merge(RECIPE, {"evaluation": {"decoding": "sample"}, "tasks": {"only": ["FOMC"]}})
    for name, seed, times in (("a", 1, 2), ("b", 1, 2), ("c", 2, 4)):
        cl_mofo.run(sampling | {"seed": seed}, out=tmp_path / name)
        assert len(asked) == times


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_damaged_is_not_found(folder, data):
    keep("a", ANSWERS, 1.5)
    file = folder / "a.json"
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    assert find("a", 2) in (None, (ANSWERS, 1.5))  # a space may change


def test_what_belongs_to_another_key_is_not_found(folder):
    keep("a", ANSWERS, 1.5)
    (folder / "a.json").rename(folder / "b.json")
    assert find("b", 2) is None


def test_what_is_kept_is_found(folder):
    keep("a", ANSWERS, 1.5)
    assert find("a", 2) == (ANSWERS, 1.5)
    assert find("a", 3) is None
    assert find("b", 2) is None


def test_no_fault_of_the_disk_is_the_runs(folder, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(answer_cache, "write_checked", full)
    keep("a", ANSWERS, None)
    assert find("a", 2) is None
    monkeypatch.setattr(answer_cache, "cache_folder", lambda kind: None)
    keep("a", ANSWERS, None)
    assert find("a", 2) is None


def test_the_longest_unused_go_first(folder, monkeypatch):
    keep("a", ANSWERS, None)
    size = (folder / "a.json").stat().st_size
    monkeypatch.setattr(answer_cache, "MOST", 2 * size)
    for name in "bcd":
        keep(name, ANSWERS, None)
        if name == "b":
            assert find("a", 2)
    assert len(list(folder.iterdir())) == 2
    assert (folder / "d.json").exists()


ROWS = mini.records()["FOMC"]["test"][:3]


def key(model, encoder=None, rows=ROWS, told=None, settled=None):
    encoder = encoder or Encoder(model.tokenizer, 64, 8)
    told = told or {"decoding": "greedy"}
    weights, records = weights_digest(model.module), digest_of(rows)[0]
    return key_of(model, weights, encoder, records, told, settled)


def changed_weight(model):
    model.module.model.norm.weight.data[5] += 1e-7


def changed_buffer(model):
    model.module.model.rotary_emb.inv_freq[0] *= 2


def changed_config(model):
    model.module.config.rms_norm_eps *= 2


def changed_attention(model):
    model.module.set_attn_implementation("eager")


@pytest.mark.parametrize(
    "change", [changed_weight, changed_buffer, changed_config, changed_attention]
)
def test_another_model_has_another_key(tiny, change):
    other = copy.deepcopy(tiny)
    assert key(other) == key(tiny)
    change(other)
    assert key(other) != key(tiny)


def test_everything_that_answers_depend_on_makes_another_key(tiny, monkeypatch):
    from cl_mofo.evaluation.metrics import differs

    keys = [
        key(tiny),
        key(tiny, Encoder(tiny.tokenizer, 63, 8)),
        key(tiny, Encoder(tiny.tokenizer, 64, 9)),
        key(tiny, Encoder(tiny.tokenizer, 64, 8, joint=True)),
        key(tiny, rows=ROWS[:2]),
        key(tiny, rows=[*ROWS[:2], {**ROWS[2], "answer": "D"}]),
        key(tiny, told={"decoding": "sample"}),
        key(tiny, settled=differs),
    ]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    keys.append(key(tiny))
    monkeypatch.setattr(answer_cache, "source_digest", lambda: "other")
    keys.append(key(tiny))
    monkeypatch.setattr(answer_cache, "versions", lambda: {"torch": "3"})
    keys.append(key(tiny))
    assert len({*keys, None}) == len(keys) + 1


def test_where_not_all_is_known_nothing_is_kept(tiny):
    class Own(type(tiny.module)):
        """A model whose code is the user's."""

    tiny.module.__class__ = Own
    assert key(tiny) is None


def test_a_diverged_model_is_told_of_and_not_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(examine, "mean_loss", lambda _: float("nan"))
    with pytest.raises(TrainingError, match="the model is broken"):
        cl_mofo.run(RECIPE, out=tmp_path / "run")
    assert not folder.exists() or not list(folder.iterdir())
