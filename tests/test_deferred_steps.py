"""Steps whose outcome the host hears of later, as on an accelerator: the same bits, rows, faults.

On a CPU nothing is ever waited for, so a loop is told here to defer all the same.
"""

import pytest
import torch

from cl_mofo.errors import TrainingError
from cl_mofo.update import waits
from tests.poison import Poison, Witness
from tests.strategy_rows import ROWS
from tests.test_skipped_steps import INF, NAN, STEPS, build, stream, train, weights

BROKEN = {1: NAN, STEPS - 1: INF, STEPS + 3: INF}, (STEPS,)
NAMES = [["sequential"], ["replay", "mofo"], ["hft"]]


class Heard:
    def __init__(self):
        self.skipped_steps = []

    def __getattr__(self, _):
        return lambda *_: None

    def skipped(self, loop, step, reason):
        self.skipped_steps.append((loop.plan.task.name, step, reason))


def trained(tiny, names, *, deferred, watch=None):
    heard = Heard()
    loop, _ = build(tiny, names, Poison(*BROKEN), watch=watch, observer=heard)
    loop.deferred = deferred
    log = loop.plugins[0]
    train(loop)
    keys = ("step", "loss", "grad_norm", "skipped", "lr", "tokens")
    return loop, [[repr(row[key]) for key in keys] for row in log.rows], heard.skipped_steps


@pytest.mark.parametrize("names", NAMES, ids="+".join)
def test_a_step_heard_of_later_is_the_same(tiny, names):
    watch = Witness()
    now, rows_now, heard_now = trained(tiny, names, deferred=False)
    later, rows_later, heard_later = trained(tiny, names, deferred=True, watch=watch)
    assert torch.equal(weights(now), weights(later))
    assert rows_now == rows_later
    assert [found[:2] for found in heard_now] == [found[:2] for found in heard_later]
    assert later.skipped == now.skipped == 4
    if names != ["hft"]:  # whose tensors may get their first moments, zeros, in a step that is left
        left = [i for i, same in enumerate(watch.same) if same]
        assert left == [1, STEPS - 1, STEPS, STEPS + 3]
    assert "the gradients' norm is not finite" in heard_later[0][2]  # whose, nobody has looked
    assert heard_later[2][2] == heard_now[2][2] == "the loss is not finite (nan)"


def test_a_state_saved_while_the_outcome_is_out_knows_it(tiny):
    loop, _ = build(tiny, ["sequential"], Poison({1: NAN}))
    loop.deferred = True

    class SavedError(Exception):
        pass

    def save(*_, **__):
        if loop.global_step == 2:
            raise SavedError

    loop.plugins[0].after_training_iteration = save
    with pytest.raises(SavedError):
        train(loop)
    assert loop.skipped == 0  # as far as the host has heard
    assert loop.state_dict()["position"]["skipped"] == 1


def test_one_too_many_is_told_with_its_own_step_and_rows(tiny):
    messages = []
    for deferred in (False, True):
        loop, _ = build(tiny, ["sequential"], Poison({2: NAN}), ["training.max_skipped_steps=0"])
        loop.deferred = deferred
        with pytest.raises(TrainingError, match="step 3 of 5") as caught:
            train(loop)
        messages.append(str(caught.value).partition("Nothing was updated")[2])
    assert messages[0] == messages[1]


def test_the_last_step_of_a_task_is_heard_of(tiny):
    loop, _ = build(tiny, ["sequential"], Poison({4: NAN}), ["training.max_skipped_steps=0"])
    loop.deferred = True
    with pytest.raises(TrainingError, match="step 5 of 5"):
        train(loop, stream()[:1])


@pytest.mark.parametrize("name", ROWS)
def test_only_who_acts_on_gradients_has_to_wait(tiny, name):
    loop, _ = build(tiny, [name])
    assert waits(loop.acting) == (name in ("ewc", "gem", "agem"))


@pytest.mark.parametrize("names", [["sequential"], ["mofo"]], ids="+".join)
def test_a_cpu_has_nothing_to_wait_for(tiny, names):
    loop, _ = build(tiny, names)
    assert not loop.deferred
    loop.engine._trainable = {"there": torch.nn.Parameter(torch.ones(1, device="meta"))}
    assert loop.engine.leaves_steps
    loop.engine.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert not loop.engine.leaves_steps
