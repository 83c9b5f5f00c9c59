"""Checkpoints of several ranks, read by another number of ranks and by other engines."""

import pytest
import torch

from cl_mofo.checkpoint import load_state
from cl_mofo.checkpoint.store import Store
from cl_mofo.engine.ranks import Ranks
from cl_mofo.parts import Span
from tests.engine_cases import small
from tests.ranks import on_ranks
from tests.resume_cases import READERS, WRITERS, loop_on, store_of


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    on_ranks("tests.resume_cases:write", 2, folder, seconds=900)
    return folder, on_ranks("tests.resume_cases:read", 3, folder, seconds=900)


def whole(folder):
    """A checkpoint's state, put together from all ranks' parts."""
    (checkpoint,) = Store(folder, Ranks(), 1).read()
    named = small().module.named_parameters()
    wanted = {n: (Span(0, p.numel()), p.shape) for n, p in named}
    return checkpoint, load_state(checkpoint.folder, 0, checkpoint.ranks, wanted)


def equal(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


@pytest.mark.slow
def test_three_ranks_hold_what_two_or_one_have_saved(written):
    folder, _ = written
    for name in WRITERS:
        saved, before = whole(store_of(folder, name))
        assert saved.ranks == (1 if name == "torch" else 2)
        assert before["strategies"]["ewc"]["fisher"]
        assert before["strategies"]["gem"]["rows"]
        for reader in READERS:
            again, after = whole(store_of(folder, name, reader))
            assert again.ranks == 3
            for part in ("model", "moments", "counters", "strategies", "position"):
                assert equal(after[part], before[part]), (name, reader, part)


@pytest.mark.slow
def test_they_train_on_to_the_same_model(written):
    _, ranks = written
    for results in ranks:
        assert results == ranks[0]
    found = [total for *_, total in ranks[0]]
    assert len(found) == len(READERS) * len(WRITERS)
    assert max(found) - min(found) < 1e-6 * max(found)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_ranks_have_saved(written):
    folder, _ = written
    for name in WRITERS:
        saved, state = whole(store_of(folder, name))
        loop = loop_on(WRITERS["torch"], Ranks())
        loop.load_state_dict(state)
        assert loop.global_step == int(saved.name.split("-")[0])
        assert all(torch.equal(w, state["model"][n]) for n, w in loop.parameters().items())
