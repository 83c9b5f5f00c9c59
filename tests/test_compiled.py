"""Compiled training passes: the same losses, or a plain word on why not."""

import pytest
import torch

from cl_mofo.engine.single import SingleEngine
from cl_mofo.errors import UserError
from cl_mofo.recipes import override
from cl_mofo.resolve import resolve
from tests.test_skipped_steps import BASE, build, train


def test_only_one_device_compiles():
    with pytest.raises(UserError, match=r"engine\.compile: needs engine\.kind=torch"):
        resolve(override(BASE, ["engine.compile=true", "engine.kind=fsdp"]))


def test_what_is_compiled_is_padded(tiny):
    loop, _ = build(tiny, ["mofo"], settings=["engine.compile=true"])
    assert not loop.way.packed
    assert loop.way.refused is None


def test_who_cannot_compile_says_so(tiny, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def compile(module, **_):
        def forward(**inputs):
            raise InvalidCxxCompiler

        return forward

    monkeypatch.setattr(torch, "compile", compile)
    engine = SingleEngine(compiled=True)
    engine.prepare(tiny, lambda named: torch.optim.SGD([p for _, p in named], lr=1.0))
    with pytest.raises(UserError, match=r"engine\.compile: torch cannot compile .* Leave it out"):
        engine.forward(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_compiled_steps_are_the_same_up_to_rounding(tiny):
    inner = tiny.module.model
    inner.layers, inner.config.num_hidden_layers = inner.layers[:1], 1  # each is compiled alike
    found = []
    for settings in (["engine.compile=true"], []):
        loop, rows = build(tiny, ["ewc", "mofo"], settings=settings)
        train(loop)
        found.append([row["loss"] for row in rows])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0] != found[1]  # or nothing was compiled
