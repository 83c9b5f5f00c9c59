"""Replay: what is kept, when it is learned again, and that it counts as part of its task."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_mofo.checkpoint import load_state, save_state
from cl_mofo.data.tokenise import Example
from cl_mofo.discovery import registry
from cl_mofo.errors import UserError
from cl_mofo.observer import Observer
from cl_mofo.recipes import override
from cl_mofo.resolve import resolve
from cl_mofo.schedule import lr_factor
from cl_mofo.steplog import StepLog
from cl_mofo.strategies.replay import Replay, first_or_random, reservoir
from cl_mofo.strategy import Strategy
from tests.test_loop import BASE, build, learn, stream

TASKS = ("FOMC", "NumGLUE-cm", "C-STANCE")
LIMA = [{"prompt": f"How many are {i} and {i}?", "answer": str(2 * i)} for i in range(5)]


class Seen(Strategy):
    """Notes which rows each step's batch holds, as (task, index), None being no task's."""

    name = "seen"
    phases = frozenset({"end"})

    def __init__(self):
        super().__init__()
        self.steps = []
        self.origin = {}

    def before_experience(self, loop):
        name = loop.plan.task.name
        for i, example in enumerate(loop.examples):
            assert self.origin.setdefault(example.ids, (name, i)) == (name, i)

    def before_step(self, loop):
        batch = loop.drawn(loop.epoch)[loop.batch]
        self.steps.append((loop.stage.name, [self.origin.get(e.ids) for e in batch]))


def run(tiny, *settings, train=20, tasks=TASKS, auxiliary=()):
    """Learn `train` rows of each task in batches of four; return replay, rows, steps by task."""
    only = f"tasks.only=[{','.join(tasks)}]"
    assignments = ["strategy=replay", only, "tasks.prompt_tokens=32", "tasks.answer_tokens=4"]
    recipe = resolve(override(BASE, [*assignments, *settings]))
    seen, log = Seen(), StepLog(Observer())
    replay = registry().strategy("replay")(recipe.strategies["replay"])
    loop = build(
        copy.deepcopy(tiny),
        *assignments,
        *settings,
        strategies=[replay, seen],
        plugins=[log],
        auxiliary=auxiliary,
    )
    records = []
    for experience in stream(train, tasks):
        learn(loop, [experience])
        records.append(replay.record())
    steps = {task: [] for task in tasks}
    for row, step in zip(log.rows, seen.steps, strict=True):
        assert row["stage"] == step[0]
        steps[row["task"]].append(step)
    return loop, records, log.rows, steps


def passed(steps):
    """Return the rows of the replay pass, sorted."""
    return sorted(origin for stage, batch in steps if stage == "replay" for origin in batch)


def test_traces_schedule_replays_the_first_tenth_of_every_earlier_task(tiny):
    _, records, _, steps = run(tiny)
    # 20 rows in batches of 4: five steps, then a pass of 0, 2 and 4 rows: 0, 1 and 1 steps.
    assert [[stage for stage, _ in steps[task]] for task in TASKS] == [
        ["task"] * 5,
        ["task"] * 5 + ["replay"],
        ["task"] * 5 + ["replay"],
    ]
    a, b, c = TASKS
    assert passed(steps[b]) == [(a, 0), (a, 1)]
    assert passed(steps[c]) == [(a, 0), (a, 1), (b, 0), (b, 1)]
    for task in TASKS:
        own = [o for stage, batch in steps[task] if stage == "task" for o in batch]
        assert sorted(own) == [(task, i) for i in range(20)]
    assert records == [
        {"rows": {}, "auxiliary": 0, "draws": 0},
        {"rows": {a: [0, 1]}, "auxiliary": 0, "draws": 2},
        {"rows": {a: [0, 1], b: [0, 1]}, "auxiliary": 0, "draws": 4},
    ]


def test_the_learning_rate_spans_task_and_pass(tiny):
    _, _, rows, _ = run(tiny, "replay.ratio=0.6", tasks=TASKS[:2], auxiliary=LIMA)
    for task, total in zip(TASKS, (5 + 2, 5 + math.ceil((12 + 5) / 4)), strict=False):
        lrs = [row["lr"] for row in rows if row["task"] == task]
        # 1/2 (1 + cos(pi s/S)) over all S steps: the pass still learns.
        assert lrs == pytest.approx(
            [5e-4 * (1 + math.cos(math.pi * s / total)) for s in range(total)]
        )
        assert [row["step"] for row in rows if row["task"] == task] == list(range(1, total + 1))
        assert lr_factor("cosine", total - 1, total, 0) > 0


def test_the_learning_rate_starts_anew_with_the_pass_if_asked(tiny):
    settings = ("replay.restart=true", "replay.ratio=0.6", "optimizer.warmup_ratio=0.4")
    _, _, rows, _ = run(tiny, *settings, tasks=TASKS[:2])
    # Five steps, then a pass of three: 2 and 1 of them warm up, then the cosine of the others.
    task = [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * s / 3)) for s in range(3))]
    again = [1 / 2, *(0.5 * (1 + math.cos(math.pi * s / 2)) for s in range(2))]
    lrs = [row["lr"] / 1e-3 for row in rows]
    assert lrs == pytest.approx([*task, *task, *again])


def test_what_a_stop_kept_from_being_replayed_is_not_recorded(tiny):
    class Stop(Strategy):
        name = "stop"

        def after_step(self, loop):
            if loop.plan.task.name == TASKS[1]:
                loop.stop_training()

    replay, only = Replay(), f"tasks.only=[{','.join(TASKS[:2])}]"
    loop = build(copy.deepcopy(tiny), only, strategies=[replay, Stop()])
    learn(loop, stream(20, TASKS[:2]))
    assert loop.global_step == 6
    assert replay.record() == {"rows": {}, "auxiliary": 0, "draws": 0}


@pytest.mark.parametrize("used", [True, False])
def test_with_rows_of_no_task_the_first_task_has_a_pass(tiny, used):
    _, records, _, steps = run(tiny, f"replay.auxiliary={used}", tasks=TASKS[:2], auxiliary=LIMA)
    first = [batch for stage, batch in steps[TASKS[0]] if stage == "replay"]
    assert first == ([[None] * 4, [None]] if used else [])
    second = Counter(o for stage, batch in steps[TASKS[1]] if stage == "replay" for o in batch)
    assert second == {(TASKS[0], 0): 1, (TASKS[0], 1): 1, **({None: 5} if used else {})}
    assert [r["auxiliary"] for r in records] == ([5, 5] if used else [0, 0])
    assert [r["draws"] for r in records] == ([5, 7] if used else [0, 2])


def test_rows_of_no_task_are_encoded_within_the_largest_budgets(tiny):
    loop = build(tiny, strategies=[Replay()], auxiliary=[{"prompt": "of " * 300, "answer": "a"}])
    learn(loop, list(stream(4))[:1])
    (example,) = loop.stages[-1].examples
    assert len(example) - example.supervised == 96


@pytest.mark.parametrize(("mix", "old"), [(0.5, 2), (0.25, 1), (0.01, 1), (0.99, 3)])
def test_interleaved_batches_hold_their_share_of_old_rows(tiny, mix, old):
    _, records, _, steps = run(
        tiny, "replay.schedule=interleaved", f"replay.mix={mix}", "replay.size=3", tasks=TASKS[:2]
    )
    first, second = TASKS[:2]
    assert [len(batch) for _, batch in steps[first]] == [4] * 5
    assert len(steps[second]) == math.ceil(20 / (4 - old))
    for stage, batch in steps[second]:
        assert stage == "task"
        assert sum(task == first for task, _ in batch) == old
    times = Counter(o for _, batch in steps[second] for o in batch)
    assert all(times[(second, i)] == 1 for i in range(20))
    drawn = [times[(first, i)] for i in range(3)]
    assert max(drawn) - min(drawn) <= 1
    assert sum(times.values()) == 20 + sum(drawn)
    assert records[1] == {"rows": {first: [0, 1, 2]}, "auxiliary": 0, "draws": sum(drawn)}


def test_the_record_names_only_rows_that_were_replayed(tiny):
    # Twelve old rows, of which the second task's four batches take four.
    _, records, _, steps = run(
        tiny,
        "replay.schedule=interleaved",
        "replay.mix=0.25",
        "replay.size=12",
        train=12,
        tasks=TASKS[:2],
    )
    old = sorted(i for _, batch in steps[TASKS[1]] for task, i in batch if task == TASKS[0])
    assert len(old) == 4
    assert records[1]["rows"] == {TASKS[0]: old}


def test_interleaving_needs_room_for_two(tiny):
    with pytest.raises(UserError, match=r"optimizer\.batch_size is 1"):
        run(tiny, "replay.schedule=interleaved", "optimizer.batch_size=1", train=2)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (["replay.ratio=0.29"], 5),  # floor(5.8)
        (["replay.ratio=0.35"], 7),
        (["replay.ratio=0.01"], 1),  # at least one
        (["replay.size=4"], 4),
        (["replay.size=30"], 20),  # all there are
        (["replay.selection=random", "replay.size=4"], 4),
    ],
)
def test_how_many_rows_are_kept(tiny, settings, count):
    _, records, _, _ = run(tiny, *settings, tasks=TASKS[:2])
    indices = records[1]["rows"][TASKS[0]]
    assert len(indices) == count
    if "replay.selection=random" not in settings:
        assert indices == list(range(count))


def test_the_ratio_is_the_decimal_as_written(tiny):
    loop, *_ = run(tiny, "replay.ratio=0.58", train=50, tasks=TASKS[:1])
    assert math.floor(0.58 * 50) == 28  # in floats
    assert len(loop.strategies[0].buffer) == 29


def test_random_rows_depend_on_the_seed_alone(tiny):
    drawn = []
    for seed in (1, 1, 2):
        settings = ["replay.selection=random", "replay.ratio=0.5", f"seed={seed}"]
        drawn.append(run(tiny, *settings, tasks=TASKS[:2])[1][1]["rows"][TASKS[0]])
    assert drawn[0] == drawn[1] != list(range(10))
    assert drawn[0] != drawn[2]


def test_a_reservoir_is_of_all_past_tasks_together(tiny):
    loop, records, _, _ = run(tiny, "replay.selection=reservoir", "replay.size=6")
    assert [sum(map(len, r["rows"].values())) for r in records] == [0, 6, 6]
    assert records[2]["rows"].keys() <= set(TASKS[:2])
    replay = loop.strategies[0]
    assert replay.seen == 60
    rows = [(kept.task, kept.index) for kept in replay.buffer]
    assert len(set(rows)) == 6


@given(
    st.lists(st.integers(0, 12), max_size=4),
    st.integers(1, 8),
    st.integers(0, 2**32),
)
def test_a_reservoir_is_a_sample_of_its_stream(lengths, size, seed):
    generator = np.random.default_rng(seed)
    kept, seen = [], 0
    for length in lengths:
        kept = reservoir(kept, seen, range(seen, seen + length), size, generator)
        seen += length
        assert len(kept) == min(size, seen)
        assert len(set(kept)) == len(kept)
        assert set(kept) <= set(range(seen))


def test_a_reservoir_keeps_every_row_with_equal_probability():
    generator = np.random.default_rng(0)
    times = Counter()
    for _ in range(4000):
        kept, seen = [], 0
        for length in (3, 7, 10):
            kept = reservoir(kept, seen, range(seen, seen + length), 5, generator)
            seen += length
        times.update(kept)
    # Probability 5/20: a mean of 1000 and a standard deviation of 27; five of them.
    assert all(abs(times[row] - 1000) < 137 for row in range(20))


@given(st.integers(0, 20), st.integers(1, 25), st.booleans(), st.integers(0, 99))
def test_chosen_rows_are_in_order_and_once(rows, count, random, seed):
    generator = np.random.default_rng(seed) if random else None
    chosen = first_or_random(range(rows), count, generator)
    assert len(chosen) == min(count, rows)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(rows))
    if not random:
        assert chosen == list(range(len(chosen)))


def test_a_reservoir_needs_a_size():
    with pytest.raises(ValueError, match="give that number as size"):
        Replay.Config(selection="reservoir")
    with pytest.raises(UserError, match="give that number as size"):
        resolve(override(BASE, ["replay.selection=reservoir"]))


@pytest.mark.parametrize(
    "setting", ["ratio=0", "ratio=1.1", "size=0", "mix=1", "mix=0", "schedule=never"]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UserError, match=setting.split("=")[0]):
        resolve(override(BASE, [f"replay.{setting}"]))


def test_the_buffer_survives_a_checkpoint(tiny, tmp_path):
    loop, _, _, _ = run(tiny, "replay.selection=reservoir", "replay.size=7", train=6)
    replay = loop.strategies[0]
    save_state(tmp_path, replay.state_dict())
    back = Replay(replay.config)
    back.load_state_dict(load_state(tmp_path))
    assert back.buffer == replay.buffer
    assert isinstance(back.buffer[0].example, Example)
    # Algorithm R goes on where it was: the next draw depends on how many rows came before.
    assert back.seen == replay.seen == 18
