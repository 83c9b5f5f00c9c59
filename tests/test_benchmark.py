"""TRACE as an Avalanche benchmark, used by Avalanche's own templates."""

import torch
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import Naive

from cl_mofo import mini
from cl_mofo.data import CausalCollator, load_trace, make_benchmark


def small(tasks=("FOMC", "NumGLUE-cm"), n=8):
    return {
        task: {split: rows[:n] for split, rows in splits.items()}
        for task, splits in mini.records().items()
        if task in tasks
    }


def test_streams_and_experiences():
    records = small()
    benchmark = make_benchmark(records)
    for stream, split in (("train", "train"), ("valid", "eval"), ("test", "test")):
        experiences = list(benchmark.streams[stream])
        assert [e.task_name for e in experiences] == list(records)
        assert [e.task_label for e in experiences] == [0, 1]
        for experience in experiences:
            rows = [experience.dataset[i] for i in range(len(experience.dataset))]
            expected = records[experience.task_name][split]
            assert [(r["prompt"], r["answer"]) for r in rows] == [
                (r["prompt"], r["answer"]) for r in expected
            ]


def test_load_trace_gives_the_eight_tasks_in_order(trace_500):
    benchmark = load_trace(trace_500)
    assert [len(e.dataset) for e in benchmark.train_stream] == [500, 500, 80, *[500] * 5]
    assert [e.task_name for e in benchmark.test_stream][0::7] == ["C-STANCE", "20Minuten"]
    assert [e.task_name for e in load_trace(trace_500, tasks=["Py150"]).train_stream] == ["Py150"]


class Logits(torch.nn.Module):
    """A causal language model as Avalanche's templates want one: ids in, logits out."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, ids):
        return self.module(ids).logits


def loss(logits, labels):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def test_avalanches_own_template_and_replay_train_on_it(tiny):
    collate = CausalCollator(tiny.tokenizer, 128, 64)
    benchmark = make_benchmark(small(), collate_fn=collate)
    model = Logits(tiny.module)
    naive = Naive(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        criterion=loss,
        train_mb_size=4,
        train_epochs=2,
        plugins=[ReplayPlugin(mem_size=4)],
        evaluator=None,
    )
    ids, labels, _ = collate(
        [naive_row | {"targets_task_labels": 1} for naive_row in small()["NumGLUE-cm"]["train"]]
    )
    before = loss(model(ids), labels).item()
    for experience in benchmark.train_stream:
        naive.train(experience, eval_streams=[])
    assert loss(model(ids), labels).item() < 0.8 * before
