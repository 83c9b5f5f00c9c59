"""What the engines' tests do on every rank: each function is one start of processes for many cases.

Every rank also does what one process alone would do, and compares.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch

from cl_mofo import mini
from cl_mofo.checkpoint import load_state, save_state
from cl_mofo.compat import repair_torchvision
from cl_mofo.config import EngineConfig, ModelConfig
from cl_mofo.data import make_benchmark
from cl_mofo.data.plan import plan_tasks
from cl_mofo.discovery import registry
from cl_mofo.engine import SingleEngine, make_engine
from cl_mofo.engine.ranks import Ranks, join
from cl_mofo.errors import TrainingError, UserError
from cl_mofo.experiment import run
from cl_mofo.loop import Loop
from cl_mofo.model import LanguageModel, load_model, load_tokenizer
from cl_mofo.observer import Observer
from cl_mofo.optim import MoFO, NonFiniteGradientError
from cl_mofo.optim.selection import count
from cl_mofo.recipes import override
from cl_mofo.resolve import resolve, strategies_of
from cl_mofo.steplog import StepLog
from tests.strategy_rows import ROWS

repair_torchvision()

from avalanche.core import SupervisedPlugin  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

ENGINES = {
    "ZeRO-0": EngineConfig(kind="deepspeed", zero_stage=0),
    "ZeRO-1": EngineConfig(kind="deepspeed", zero_stage=1),
    "ZeRO-2": EngineConfig(kind="deepspeed", zero_stage=2),
    "ZeRO-3": EngineConfig(kind="deepspeed", zero_stage=3),
    "FSDP2": EngineConfig(kind="fsdp"),
}
OFFLOADED = {
    "ZeRO-1 offload": EngineConfig(kind="deepspeed", zero_stage=1, offload="optimizer"),
    "ZeRO-2 offload": EngineConfig(kind="deepspeed", zero_stage=2, offload="optimizer"),
    "ZeRO-3 offload": EngineConfig(kind="deepspeed", zero_stage=3, offload="parameters"),
    "FSDP2 offload": EngineConfig(kind="fsdp", offload="parameters"),
}
FRACTIONS = (0.05, 0.2, 1.0)
STEPS = 10


class ScaledLlama(LlamaForCausalLM):
    """A small Llama with a parameter of one entry, fewer than there are ranks."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * self.scale
        return output


@functools.cache
def tokenizer() -> Any:
    return load_tokenizer(ModelConfig(path="tiny"))


def small(kind: type[LlamaForCausalLM] = LlamaForCausalLM, **shape: Any) -> LanguageModel:
    """A small Llama, of whose tensors three ranks have uneven parts."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 1280, "hidden_size": 40, "intermediate_size": 50, "num_hidden_layers": 2}
    config = LlamaConfig(
        **sizes | shape, num_attention_heads=4, num_key_value_heads=2, eos_token_id=0
    )
    return LanguageModel(kind(config), tokenizer(), torch.device("cpu"), torch.float32)


def whole_weights(engine: Any) -> dict[str, torch.Tensor]:
    with engine.whole() as module:
        return {name: p.detach().clone() for name, p in module.named_parameters()}


class Parts:
    """What of whole tensors lies on this rank, in an engine's parameters."""

    def __init__(self, engine: Any, ranks: Ranks) -> None:
        self.engine = engine
        self.shapes = {n: part.shape for n, part in engine.parameters().items()}
        held = ranks.gather({n: shape.numel() for n, shape in self.shapes.items()})
        self.first = {n: sum(rank[n] for rank in held[: ranks.rank]) for n in held[0]}

    def of(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        shape, first = self.shapes[name], self.first[name]
        if shape == whole.shape:
            return whole
        return whole.flatten()[first : first + shape.numel()].view(shape)

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: part.clone() for n, part in self.engine.parameters().items()}


# Identical gradients.


def mofo(named: Any, fraction: float, **options: float) -> MoFO:
    """Filter two groups, as weight decay makes them: what ZeRO packs by group it packs twice."""
    vectors = [(n, p) for n, p in named if "norm" in n or n == "scale"]
    matrices = [(n, p) for n, p in named if "norm" not in n and n != "scale"]
    groups = [{"params": matrices}, {"params": vectors}]
    return MoFO(groups, update_fraction=fraction, **options)


def gradient(shapes: dict[str, torch.Size], step: int) -> dict[str, torch.Tensor]:
    """Few distinct values, and now and then none but zero: most momenta are tied."""
    generator = torch.Generator().manual_seed(step)
    coarse = step % 3 != 2
    return {
        name: torch.randint(-2, 3, shape, generator=generator).float() * (step % 7 != 3)
        if coarse
        else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def exact(folder: Any) -> dict[str, Any]:
    """Compare MoFO with one process: on given gradients, and on a model's own."""
    ranks = join(ENGINES["FSDP2"])
    return {
        "fed": fed(ranks),
        "end_to_end": end_to_end(ranks),
        "not_finite": not_finite(ranks),
        "diverged": diverged(ranks),
    }


def complete(folder: Any) -> dict[str, Any]:
    """Compare every strategy with one process, and a run that was stopped with one that was not."""
    ranks = join(ENGINES["FSDP2"])
    return {"strategies": strategies(ranks), "state": state(ranks, folder)}


class Alone:
    """What one process comes to, step by step, on gradients that are put into it."""

    def __init__(self, model: LanguageModel, optimizer: Any) -> None:
        engine = SingleEngine()
        engine.prepare(model, optimizer)
        shapes = {n: p.shape for n, p in model.module.named_parameters()}
        self.given = [gradient(shapes, step) for step in range(STEPS)]
        self.weights = [whole_weights(engine)]
        self.tied = 0
        for step, given in enumerate(self.given):
            pass_at(engine, step)
            for n, parameter in engine.trainable.items():
                parameter.grad.copy_(given[n])
            engine.step()
            self.weights.append(whole_weights(engine))
            for parameter in engine.trainable.values():
                moment = engine.optimizer.state[parameter]["exp_avg"].abs()
                self.tied += int(moment.numel() - moment.unique().numel())


def pass_at(engine: Any, step: int) -> None:
    """Make a pass, as engines wait for one before a step."""
    engine.discard_gradients()
    engine.micro_batch(last=True)
    ids = torch.arange(6)[None] + step + engine.ranks.rank
    engine.backward(engine.forward(input_ids=ids).logits.square().mean())


def fed(ranks: Ranks) -> list[Any]:
    """Let engines step on gradients that are put into them; compare with one process bit by bit."""
    results = []
    for fraction in FRACTIONS:
        model = functools.partial(small, ScaledLlama, vocab_size=61, num_hidden_layers=1)
        # The decay moves every selected entry visibly, whatever its momentum.
        optimizer = functools.partial(mofo, fraction=fraction, lr=0.01, weight_decay=0.5)
        alone = Alone(model(), optimizer)
        for name, config in (ENGINES | (OFFLOADED if fraction == FRACTIONS[0] else {})).items():
            engine = make_engine(config, ranks)
            engine.prepare(model(), optimizer)
            compared = beside(alone, engine, Parts(engine, ranks), fraction)
            results.append({"engine": name, "fraction": fraction, "tied": alone.tied} | compared)
            engine.close()
    return results


def beside(alone: Alone, engine: Any, parts: Parts, fraction: float) -> dict[str, Any]:
    """Step on what one process was given, and compare after every step."""
    differing = selected = 0
    furthest = 0.0
    for step, given in enumerate(alone.given):
        pass_at(engine, step)
        for n, part in engine.gradients().items():
            part.copy_(parts.of(n, given[n]))
        engine.step()
        before, theirs = alone.weights[step : step + 2]
        for n, ours in engine.parameters().items():
            right = theirs[n] != before[n]
            assert int(right.sum()) == count(fraction, right.numel())
            mine = ours != parts.of(n, before[n])
            differing += int((mine != parts.of(n, right)).sum())
            selected += int(mine.sum())
            if len(ours):
                apart = (ours - parts.of(n, theirs[n])).abs().max()
                furthest = max(furthest, float(apart))
    ours = whole_weights(engine)
    assert all(torch.equal(ours[n], weight) for n, weight in alone.weights[-1].items())
    return {"selected": selected, "differing": differing, "furthest": furthest}


def not_finite(ranks: Ranks) -> dict[str, Any]:
    """Step on a gradient of which one entry, on one rank, is not finite."""
    model = small()
    name = "model.layers.1.mlp.down_proj.weight"
    engine = make_engine(ENGINES["FSDP2"], ranks)
    engine.prepare(model, functools.partial(mofo, fraction=0.05, lr=0.01))
    engine.module.to("meta")  # as Avalanche moves a model to its device
    before = whole_weights(engine)
    engine.backward(engine.forward(input_ids=torch.arange(6)[None]).logits.square().mean())
    if ranks.first:
        engine.gradients()[name][0, 0] = float("nan")
    try:
        engine.step()
    except NonFiniteGradientError as error:
        after = whole_weights(engine)
        same = all(torch.equal(after[n], before[n]) for n in before)
        return {"names": error.names, "same": same}
    return {}


def diverged(ranks: Ranks) -> dict[str, str]:
    """Train at a learning rate that no model survives."""
    told = {}
    for name, config in ENGINES.items():
        settings = ["strategy=mofo", "tasks.only=[FOMC]", "optimizer.lr=1e30"]
        loop, _ = build(small(), make_engine(config, ranks), settings)
        try:
            loop.train(stream(["FOMC"], 8)[0], eval_streams=[])
        except TrainingError as error:
            told[name] = str(error)
        loop.engine.close()
    return told


# End to end.

BASE = {
    "model": {"path": "tiny"},
    "data": {"suite": "trace-mini"},
    "tasks": {"epochs": 1, "prompt_tokens": 96, "answer_tokens": 48},
    "optimizer": {"batch_size": 4, "lr": 1e-3},
    "training": {"micro_batch_size": 2},
}


def build(model: LanguageModel, engine: Any, assignments: Any) -> tuple[Loop, StepLog]:
    recipe = resolve(override(BASE, assignments))
    torch.manual_seed(recipe.seed)
    log = StepLog(Observer())
    loop = Loop(
        language_model=model,
        plans=plan_tasks(recipe, registry()),
        recipe=recipe,
        strategies=strategies_of(recipe, registry()),
        engine=engine,
        plugins=[log],
    )
    return loop, log


@functools.cache
def records() -> Any:
    return mini.records()


def stream(tasks: Any, rows: int) -> Any:
    few = {task: {s: r[:rows] for s, r in records()[task].items()} for task in tasks}
    return list(make_benchmark(few).train_stream)


class Trace:
    """Momenta after every step of one process, and weights, as far as they lie here."""

    def __init__(self, loop: Loop, ranks: Ranks) -> None:
        self.parts = Parts(loop.engine, ranks)
        self.weights = [self.parts.weights()]
        self.moments: list[dict[str, torch.Tensor]] = []
        self.final: dict[str, torch.Tensor] = {}
        step = loop.engine.step

        def noted(unless: torch.Tensor | None = None) -> None:
            step(unless)
            self.weights.append(self.parts.weights())
            if isinstance(loop.engine, SingleEngine):
                state = loop.optimizer.state
                self.moments.append(
                    {n: state[p]["exp_avg"].abs() for n, p in loop.engine.trainable.items()}
                )

        loop.engine.step = noted  # type: ignore[method-assign]


def fractions_at(ranks: int) -> tuple[float, ...]:
    """How batches are shared by three has nothing to do with how much of a gradient moves."""
    return FRACTIONS if ranks == 2 else FRACTIONS[:1]


def end_to_end(ranks: Ranks) -> list[Any]:
    """Train on the same global batches as one process does."""
    results = []
    for fraction in fractions_at(ranks.count):
        settings = [
            "strategy=mofo",
            f"mofo.update_fraction={fraction}",
            "tasks.only=[FOMC]",
            "tasks.epochs=2",
            "optimizer.batch_size=8",
            # As in the paper; the decay makes every selected entry move.
            "optimizer.lr=1e-5",
            "optimizer.weight_decay=0.5",
            "optimizer.schedule=constant",
        ]
        traces = {}
        for name, config in {"alone": None, **ENGINES}.items():
            engine = SingleEngine() if config is None else make_engine(config, ranks)
            loop, _ = build(small(num_hidden_layers=1), engine, settings)
            traces[name] = Trace(loop, ranks)
            for experience in stream(["FOMC"], 8 * STEPS // 2):
                loop.train(experience, eval_streams=[])
            traces[name].final = whole_weights(engine)
            engine.close()
        alone = traces.pop("alone")
        for name, trace in traces.items():
            results.append({"engine": name, "fraction": fraction} | compare(alone, trace, fraction))
    return results


def compare(alone: Trace, trace: Trace, fraction: float) -> dict[str, Any]:
    assert len(alone.weights) == len(trace.weights) == STEPS + 1
    differing = selected = 0
    furthest = 0.0
    for step, moments in enumerate(alone.moments):
        for name, moment in moments.items():
            if moment.dim() < 2 or fraction == 1:
                continue  # nothing is selected: norms are not filtered
            masks = [w[step + 1][name] != w[step][name] for w in (alone.weights, trace.weights)]
            selected += int(masks[1].sum())
            threshold = moment.flatten().topk(count(fraction, moment.numel())).values[-1]
            here = trace.parts.of(name, masks[0]) != masks[1]
            other = trace.parts.of(name, moment)[here]
            differing += len(other)
            if len(other):
                furthest = max(furthest, float((other / threshold - 1).abs().max()))
    return {
        "selected": selected,
        "differing": differing,
        "furthest": furthest,
        "error": apart(trace.final, alone.final),
    }


def apart(ours: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all weights together, over the norm of the right."""
    assert ours.keys() == right.keys()
    a, b = (torch.cat([w[n].flatten() for n in right]).double() for w in (ours, right))
    return float((a - b).norm() / b.norm())


# Every strategy on every engine.

TASKS = ("FOMC", "NumGLUE-cm")


def combinations() -> list[str]:
    with_mofo = [f"{n}+mofo" for n in sorted(ROWS) if n not in ("mofo", "sequential")]
    return [*sorted(ROWS), *with_mofo, "replay+ewc+gem+mofo", "replay+hft+ewc+agem+mofo"]


def settings_of(combination: str) -> list[str]:
    settings = {k: v for name in combination.split("+") for k, v in ROWS[name].settings.items()}
    settings |= {"lora.dropout": 0.0} if "lora" in combination else {}  # each rank draws its own
    settings |= {"ewc.labels": "model"} if combination == "ewc" else {}  # which needs a pass more
    settings |= {"optimizer.reset": True} if combination == "replay+ewc+gem+mofo" else {}
    return [
        f"strategy={combination}",
        "tasks.only=[FOMC, NumGLUE-cm]",
        *(f"{key}={value}" for key, value in settings.items()),
    ]


def model_for(combination: str) -> LanguageModel:
    """The embedded model for those that act where tasks disagree, which a random one's do not."""
    if "gem" in combination:
        return load_model(ModelConfig(path="tiny", device="cpu"))
    return small()


def trained(combination: str, engine: Any) -> tuple[Loop, StepLog]:
    loop, log = build(model_for(combination), engine, settings_of(combination))
    for experience in stream(TASKS, 8):
        loop.train(experience, eval_streams=[])
        with loop.evaluating():
            pass
    return loop, log


def strategies(ranks: Ranks) -> list[Any]:
    """Train two tasks with every strategy on every engine; the first rank compares with itself."""
    results = []
    for combination in combinations():
        if ranks.first:
            alone, plain = trained(combination, SingleEngine())
            start = {n: p.detach() for n, p in model_for(combination).module.named_parameters()}
            right = alone.weights(alone.model)
        for name, config in ENGINES.items():
            engine = make_engine(config, ranks)
            result: dict[str, Any] = {"engine": name, "strategy": combination}
            try:
                loop, log = trained(combination, engine)
            except UserError as error:
                results.append(result | {"refused": str(error)})
                continue
            with engine.whole() as module:
                if ranks.first:
                    result["error"] = apart(loop.weights(module), right)
                    result["moved"] = apart(right, start)
                    result["rows"] = [
                        [{k: v for k, v in row.items() if k != "seconds"} for row in each.rows]
                        for each in (log, plain)
                    ]
            results.append(result)
            engine.close()
    return results


# What a rank saves.


class Keep(SupervisedPlugin, supports_distributed=True):
    """Save what each rank has in the middle of the second task."""

    def __init__(self, folder: Any) -> None:
        super().__init__()
        self.folder = folder

    def after_training_iteration(self, strategy: Loop, **kwargs: Any) -> None:
        if strategy.global_step == 3:
            save_state(self.folder, strategy.state_dict())


def state(ranks: Ranks, folder: Any) -> list[Any]:
    """Save within a task, go on in a fresh loop, and end as without the stop, bit by bit."""
    results = []
    cases = itertools.product((ENGINES | OFFLOADED).items(), ("ewc+mofo", "sequential"))
    for (name, config), combination in cases:
        loop, _ = build(small(), make_engine(config, ranks), settings_of(combination))
        first, second = stream(TASKS, 8)
        kept, fresh = (folder / f"{name}-{combination}-{ranks.rank}-{when}" for when in (3, 0))
        start = whole_weights(loop.engine)
        save_state(fresh, loop.state_dict())
        loop.plugins.append(Keep(kept))
        loop.train(first, eval_streams=[])
        loop.train(second, eval_streams=[])
        right = whole_weights(loop.engine)
        loop.engine.close()
        again, _ = build(small(), make_engine(config, ranks), settings_of(combination))
        again.load_state_dict(load_state(kept))
        assert (again.step, again.total_steps) == (1, 0)  # of two, which it learns of next
        again.train(second, eval_streams=[])
        ours = whole_weights(again.engine)
        same = all(torch.equal(ours[n], right[n]) for n in right)
        again.load_state_dict(load_state(fresh))
        ours = whole_weights(again.engine)
        back = all(torch.equal(ours[n], start[n]) for n in start) and not again.optimizer.state
        result = {"engine": name, "strategy": combination, "same": same, "back": back}
        try:
            again.freeze(["model.norm.weight"])
        except UserError as error:
            result["freeze"] = str(error)
        results.append(result)
        again.engine.close()
    return results


# Whole runs.

RUNS = {
    "mofo": "ZeRO-2",
    "ewc+mofo": "FSDP2",
    "gem+mofo": "ZeRO-3",
    "replay+mofo": "ZeRO-1",
    "lora+mofo": "FSDP2",
}


def run_both_tasks(strategy: str, engine: EngineConfig, out: Any) -> dict[str, Any]:
    """Learn two tasks of the embedded suite, from the recipe to the run folder."""
    recipe = {
        "strategy": strategy,
        "tasks": {"only": list(TASKS), "epochs": 2},
        "data": {"train_limit": 64, "test_limit": 24},
        "engine": engine.model_dump(),
        "lora": {"dropout": 0.0},
        "evaluation": {"initial": True},
    }
    return run(recipe, out=out)


def runs(folder: Any) -> list[Any]:
    """Make whole runs, each on an engine of its own; the run folders say how they went."""
    results = []
    for strategy, engine in RUNS.items():
        found = run_both_tasks(strategy, ENGINES[engine], folder / "runs" / strategy)
        results.append({key: found[key] for key in ("scores", "folder")})
    return results
