"""DeepSpeed and FSDP2 on two and three ranks: the same selection, the same training.

What the ranks do is in `engine_cases.py`; here it is judged. `UPDATE_DOCS=1` writes the table of
engines and strategies into docs/scale.md, which must hold what the ranks found.
"""

import json
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from cl_mofo.config import EngineConfig, Recipe
from cl_mofo.engine import check_engine, make_engine
from cl_mofo.engine.internals import ZeRO3, ZeRO12
from cl_mofo.engine.ranks import Ranks
from cl_mofo.errors import UserError
from cl_mofo.optim.shards import shards_of
from tests.engine_cases import (
    ENGINES,
    FRACTIONS,
    OFFLOADED,
    RUNS,
    STEPS,
    combinations,
    fractions_at,
    run_both_tasks,
)
from tests.ranks import ROOT, on_ranks

SCALE = ROOT / "docs" / "scale.md"
BEGIN, END = (f"<!-- engines x strategies: {place} -->" for place in ("begin", "end"))


@pytest.fixture(scope="module", params=[2, 3])
def exact(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    return on_ranks("tests.engine_cases:exact", request.param, folder, seconds=900)


@pytest.mark.slow
def test_given_gradients_move_the_same_entries_to_the_same_bits(exact):
    for rank in exact:
        found = {(row["engine"], row["fraction"]): row for row in rank["fed"]}
        wanted = {(engine, fraction) for engine in ENGINES for fraction in FRACTIONS}
        assert found.keys() == wanted | {(engine, FRACTIONS[0]) for engine in OFFLOADED}
        for row in found.values():
            assert row["differing"] == 0
            assert row["furthest"] == 0.0
            assert row["tied"] > 1000 * STEPS
    for case in zip(*(rank["fed"] for rank in exact), strict=True):
        assert sum(row["selected"] for row in case) > 500 * STEPS


@pytest.mark.slow
def test_the_same_global_batches_train_the_same_model(exact):
    for rank in exact:
        found = {(row["engine"], row["fraction"]): row for row in rank["end_to_end"]}
        fractions = fractions_at(len(exact))
        assert found.keys() == {(engine, fraction) for engine in ENGINES for fraction in fractions}
        for row in found.values():
            assert row["error"] < 1e-5
            assert row["furthest"] < 1e-5  # of those that differ, the distance to the threshold
            assert row["differing"] <= 1e-4 * row["selected"]
            assert (row["selected"] > 1000 * STEPS) == (row["fraction"] < 1)


@pytest.mark.slow
def test_what_one_rank_finds_not_finite_stops_all(exact):
    for rank in exact:
        names = ["model.layers.1.mlp.down_proj.weight"]
        assert rank["not_finite"] == {"names": names, "same": True}
        assert rank["diverged"].keys() == ENGINES.keys()
        assert rank["diverged"] == exact[0]["diverged"]
        for told in rank["diverged"].values():
            assert "not finite" in told
            assert "Lower optimizer.lr" in told


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    return on_ranks("tests.engine_cases:complete", 2, folder, seconds=900)


@pytest.mark.slow
def test_every_strategy_trains_as_on_one_device_or_is_refused(complete):
    found = {(row["strategy"], row["engine"]): row for row in complete[0]["strategies"]}
    assert found.keys() == {(s, engine) for s in combinations() for engine in ENGINES}
    for (strategy, _), row in found.items():
        if "refused" in row:
            assert row["refused"].split()[1] in strategy.split("+")  # "strategy hft keeps ..."
            continue
        assert row["error"] < 1e-5 < 1e-3 < row["moved"]
        ours, alone = row["rows"]
        pd.testing.assert_frame_equal(pd.DataFrame(ours), pd.DataFrame(alone), rtol=1e-3, atol=1e-6)
        if "gem" in strategy:
            violated = [r.get("gem.violated", r.get("agem.projected", 0)) for r in alone]
            assert any(violated)


def table(rows):
    found = {(row["strategy"], row["engine"]): row.get("refused") for row in rows}
    reasons = list(dict.fromkeys(reason for reason in found.values() if reason))
    cells = {
        key: "works" if reason is None else f"refused ({reasons.index(reason) + 1})"
        for key, reason in found.items()
    }
    lines = [
        f"| strategy | one device | {' | '.join(ENGINES)} |",
        f"| --- | --- |{' --- |' * len(ENGINES)}",
        *(
            f"| {strategy} | works | {' | '.join(cells[strategy, e] for e in ENGINES)} |"
            for strategy in combinations()
        ),
        "",
        *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)),
    ]
    return "\n".join(lines)


@pytest.mark.slow
def test_the_documented_table_is_what_the_ranks_found(complete):
    before, _, rest = SCALE.read_text("utf-8").partition(BEGIN)
    documented, _, after = rest.partition(END)
    found = f"\n{table(complete[0]['strategies'])}\n"
    if os.environ.get("UPDATE_DOCS"):
        SCALE.write_text(f"{before}{BEGIN}{found}{END}{after}", "utf-8")
    else:
        assert after
        assert documented == found


@pytest.mark.slow
def test_a_rank_goes_on_from_what_it_saved_to_the_bit(complete):
    for rank in complete:
        assert len(rank["state"]) == 2 * len(ENGINES | OFFLOADED)
        assert all(row["same"] and row["back"] for row in rank["state"])


@pytest.mark.slow
def test_no_tensor_is_kept_out_of_a_step_where_it_cannot_be(complete):
    for row in complete[0]["state"]:
        packed = row["engine"].startswith("ZeRO") and row["engine"] != "ZeRO-0"
        assert ("freeze" in row) == packed
        if packed:
            assert row["freeze"].startswith("model.norm.weight is to be kept out of a step")


@pytest.mark.parametrize("internals", [ZeRO12, ZeRO3])
def test_another_deepspeed_is_refused_by_its_release(internals):
    class Other:
        """Has all that is asked for, and none of it as it was."""

        def __getattr__(self, name):
            return [[object()]]

    parameter = torch.nn.Parameter(torch.zeros(2))
    for zero in (SimpleNamespace(), Other()):
        engine = SimpleNamespace(optimizer=zero)
        with pytest.raises(
            UserError, match=r"DeepSpeed [\d.]+ keeps .*Install deepspeed 0\.19\.\*"
        ):
            internals(engine, {"weight": parameter}, {"weight": 2})


def test_a_tensor_spread_along_another_dimension_is_refused():
    from torch.distributed.tensor import Shard

    class Spread(torch.nn.Parameter):
        placements = (Shard(1),)
        device_mesh = None

        def to_local(self):
            return self.detach()

    with pytest.raises(ValueError, match=r"weight is a DTensor placed .*Shard"):
        shards_of("weight", Spread(torch.zeros(2, 2)))


@pytest.mark.parametrize(
    ("ranks", "settings", "told"),
    [
        (5, {"optimizer": {"batch_size": 4}}, "5 processes share optimizer.batch_size=4"),
        (
            3,
            {
                "optimizer": {"batch_size": 8},
                "training": {"loss": "micro_batches", "micro_batch_size": 4},
            },
            "3 processes share 2 micro-batches",
        ),
    ],
)
def test_more_ranks_than_the_batch_has_parts_are_refused(ranks, settings, told):
    recipe = Recipe.model_validate({"engine": {"kind": "fsdp"}, **settings})
    with pytest.raises(UserError, match=told):
        check_engine(make_engine(recipe.engine, Ranks(0, ranks)), recipe, [])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Whole runs by two ranks, and by this process alone."""
    folder = tmp_path_factory.mktemp("runs")
    told = on_ranks("tests.engine_cases:runs", 2, folder, seconds=900)
    for strategy in RUNS:
        run_both_tasks(strategy, EngineConfig(), folder / "alone" / strategy)
    return folder, told


@pytest.mark.slow
@pytest.mark.parametrize("strategy", RUNS)
def test_a_whole_run_of_two_ranks_is_that_of_one(both, strategy):
    folder, told = both
    assert told[0] == told[1]
    ours, alone = (folder / kind / strategy for kind in ("runs", "alone"))
    steps = [pd.read_parquet(run / "metrics.parquet") for run in (ours, alone)]
    # The same rows in the same order: as many tokens, and the loss on them before each step.
    counts = ["task", "stage", "epoch", "step", "global_step", "supervised", "tokens", "lr"]
    pd.testing.assert_frame_equal(steps[0][counts], steps[1][counts])
    assert steps[0]["loss"].to_numpy() == pytest.approx(steps[1]["loss"].to_numpy(), rel=1e-3)
    results = [json.loads((run / "results.json").read_text()) for run in (ours, alone)]
    assert results[0]["finished"]
    for key in ("initial", "initial_losses", "examples", "tasks"):
        assert results[0][key] == results[1][key], key
    assert results[0]["distance"] == pytest.approx(results[1]["distance"], rel=1e-3)
    # An answer that turns on a last place may differ: one of 24 is worth 4.2 points.
    for key, tolerance in {"losses": {"rtol": 1e-3}, "scores": {"atol": 4.2}}.items():
        mine, right = (np.array(result[key], dtype=float) for result in results)
        np.testing.assert_allclose(mine, right, **tolerance)
    assert {path.name for path in ours.iterdir()} == {path.name for path in alone.iterdir()}
    predictions = [
        sorted(str(path.relative_to(run)) for path in run.glob("predictions/*/*.jsonl"))
        for run in (ours, alone)
    ]
    assert predictions[0] == predictions[1]
    assert json.loads((ours / "manifest.json").read_text())["ranks"] == 2
