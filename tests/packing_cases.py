"""What test_packing.py does on every rank."""

from __future__ import annotations

from typing import Any

from cl_mofo.engine import SingleEngine, make_engine
from cl_mofo.engine.ranks import join
from tests.engine_cases import ENGINES, build, small, stream, whole_weights

STEPS = [
    "strategy=mofo",
    "mofo.update_fraction=1.0",
    "tasks.only=[FOMC]",
    "optimizer.batch_size=7",
    "training.micro_batch_size=3",
]


def as_alone(folder: Any) -> dict[str, Any]:
    """Train on packed examples as one process does that pads; return how far weights are apart."""
    ranks = join(ENGINES["FSDP2"])
    (experience,) = stream(["FOMC"], 15)  # the last step has one example, for one rank
    found, alone = {}, {}
    for name in ("alone", "FSDP2", "ZeRO-2", "ZeRO-3"):
        single = name == "alone"
        engine = SingleEngine() if single else make_engine(ENGINES[name], ranks)
        settings = [*STEPS, f"training.packing={str(not single).lower()}"]
        model = small(num_hidden_layers=1)
        model.module.gradient_checkpointing_enable({"use_reentrant": False})
        loop, log = build(model, engine, settings)
        before = whole_weights(engine)
        loop.train(experience, eval_streams=[])
        after = whole_weights(engine)
        engine.close()
        if single:
            alone = after
            continue
        found[name] = {
            "apart": max(float((after[n] - w).abs().max()) for n, w in alone.items()),
            "moved": max(float((after[n] - w).abs().max()) for n, w in before.items()),
            "waste": loop.step_positions - loop.step_tokens,
            "steps": len(log.rows),
        }
    return found
