"""Out of memory: what the message says of each error, and what it advises at each place."""

import json
import re

import numpy as np
import pytest
import torch

from cl_mofo.config import ModelConfig
from cl_mofo.data.tokenise import Encoder
from cl_mofo.errors import OutOfMemoryError, TrainingError
from cl_mofo.evaluation.generate import answer
from cl_mofo.evaluation.losses import answer_loss
from cl_mofo.loop import Loop
from cl_mofo.memory import HOST, Shortage, explained, shortage, size
from cl_mofo.model import load_model
from cl_mofo.recipes import override
from cl_mofo.remedies import Remedies, answering, loading
from cl_mofo.resolve import resolve
from cl_mofo.sweep import run_sweep
from tests import forked
from tests.ranks import finish, start
from tests.test_loop import BASE, build, learn, stream

MiB, GiB = 2**20, 2**30

# As reported in pytorch/pytorch issue 59778, wxian3/NeuroLens issue 2 and murong-xu/CADS issue 4;
# the fourth, of a GPU that others use too, is torch 2.8's.
OLD = (
    "CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity; 781.59 MiB "
    "already allocated; 1.03 GiB free; 1.24 GiB reserved in total by PyTorch)"
)
MISSPELT = (
    "CUDA out of memory. Tried to allocate 55.57 GiB. GPU 1 has a total capacty of 12.00 GiB of "
    "which 9.02 GiB is free. Of the allocated memory 984.52 MiB is allocated by PyTorch, and "
    "463.48 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is "
    "large try setting max_split_size_mb to avoid fragmentation.  See documentation for Memory "
    "Management and PYTORCH_CUDA_ALLOC_CONF"
)
NEW = (
    "CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB of "
    "which 12.73 GiB is free. Including non-PyTorch memory, this process has 18.73 GiB memory in "
    "use. Of the allocated memory 9.08 GiB is allocated by PyTorch, and 9.35 GiB is reserved by "
    "PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation"
)
SHARED = (
    "CUDA out of memory. Tried to allocate 42.00 MiB. GPU 0 has a total capacity of 47.27 GiB of "
    "which 9.38 MiB is free. Process 644963 has 5.59 MiB memory in use. Process 3053273 has 29.04 "
    "GiB memory in use. Process 3120922 has 14.74 GiB memory in use. Including non-PyTorch memory, "
    "this process has 3.14 GiB memory in use. Of the allocated memory 2.92 GiB is allocated by "
    "PyTorch, and 34.62 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
    "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid "
    "fragmentation.  See documentation for Memory Management"
)
PIECES = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment may be enough"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (OLD, "GPU 0 was asked for 2.3 GiB and has 1.0 GiB of 6.0 GiB free: short by 1.2 GiB"),
        (
            MISSPELT,
            "GPU 1 was asked for 55.6 GiB and has 9.0 GiB of 12.0 GiB free: short by 46.5 GiB",
        ),
        (NEW, "GPU 0 was asked for 22.8 GiB and has 12.7 GiB of 31.5 GiB free: short by 10.0 GiB"),
        (
            SHARED,
            "GPU 0 was asked for 42.0 MiB and has 9.4 MiB of 47.3 GiB free: short by 32.6 MiB; "
            f"other processes hold 44.1 GiB of it; torch has 34.6 MiB more in pieces, so {PIECES}",
        ),
        ("CUDA out of memory.", "the GPU has no more"),
    ],
)
def test_torchs_message_is_read(text, told):
    assert str(shortage(torch.OutOfMemoryError(text))) == told


def test_what_is_free_in_pieces_is_told_only_where_it_would_do():
    # 12.73 GiB free and 9.35 in pieces are less than 22.78.
    assert "in pieces" not in str(shortage(torch.OutOfMemoryError(NEW)))
    enough = NEW.replace("22.78", "20.00")
    assert PIECES in str(shortage(torch.OutOfMemoryError(enough)))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_cudas_own_errors_are_about_memory_too(text):
    assert shortage(RuntimeError(text)) == Shortage("the GPU")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("DefaultCPUAllocator"[:3]),
    ],
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, explained("nothing", loading):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("allocate", "asked"),
    [
        (lambda: torch.empty(10**15), 4 * 10**15),
        (lambda: np.empty(10**15), int(6.94 * 2**50)),  # numpy rounds: 7.11 PiB
        (lambda: bytearray(2**60), None),
    ],
    ids=["torch", "numpy", "Python"],
)
def test_a_real_allocation_that_fails_on_the_host(allocate, asked):
    with pytest.raises(OutOfMemoryError) as caught, explained("trying", loading):
        allocate()
    missing = shortage(caught.value.__cause__)
    assert missing.device == HOST
    if asked is None:
        assert missing.asked is None
        assert "the host has no more" in str(caught.value)
    else:
        assert missing.asked == pytest.approx(asked, rel=0.03)
        assert 0 < missing.free < 2**50
        assert f"short by {size(missing.asked - missing.free)}" in str(caught.value)


def test_what_the_host_has_again_by_then_is_not_told_as_having_been_free():
    # What a pass held is given back as its error rises, before anything can be measured.
    text = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."
    assert str(shortage(RuntimeError(text))) == "the host was asked for 4.0 KiB"


def test_sizes_are_told_with_their_unit():
    assert [size(n) for n in (0, 999, 1000, 1.2 * GiB, 130 * MiB, 2**70)] == [
        "0 bytes",
        "999 bytes",
        "1.0 KiB",
        "1.2 GiB",
        "130 MiB",
        "1024 EiB",
    ]


# Advice: what is done already, or cannot be, is not named.

GPU0 = Shortage("GPU 0", 2 * GiB, GiB, 80 * GiB)


def remedies(*assignments, on_gpu=True, adapters=False):
    return Remedies(resolve(override(BASE, assignments)), on_gpu, adapters)


def keys(ways):
    """The recipe keys that advice names."""
    words = " ".join(ways).replace(",", " ").split()
    return [word for word in words if "." in word and "=" in word and word[0] != "("]


def test_a_pass_names_batch_length_checkpointing_and_engine():
    ways = remedies().computing(GPU0, 8, 1024)
    assert keys(ways) == [
        "training.micro_batch_size=4",
        "model.gradient_checkpointing=true",
        "tasks.prompt_tokens=512",
        "engine.kind=fsdp",
        "engine.kind=deepspeed",
        "engine.offload=optimizer",
    ]
    assert "result stay" in ways[0]
    other = remedies("training.loss=micro_batches").computing(GPU0, 8, 1024)
    assert "weighs examples" in other[0]


def test_a_pass_that_can_be_no_smaller_names_the_engine_alone():
    ways = remedies("model.gradient_checkpointing=true").computing(GPU0, 1, 20)
    assert {key.split("=")[0] for key in keys(ways)} == {"engine.kind", "engine.offload"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["engine.kind=fsdp"], ["engine.offload=parameters"]),
        (["engine.kind=fsdp", "engine.offload=parameters"], []),
        (
            ["engine.kind=deepspeed", "engine.zero_stage=0"],
            [
                "engine.zero_stage=2",
                "engine.offload=optimizer",
                "engine.zero_stage=3",
                "engine.offload=parameters",
            ],
        ),
        (
            ["engine.kind=deepspeed", "engine.offload=optimizer"],
            ["engine.zero_stage=3", "engine.offload=parameters"],
        ),
        (
            ["engine.kind=deepspeed", "engine.zero_stage=3", "engine.offload=parameters"],
            [],
        ),
    ],
)
def test_an_engine_that_spreads_already_is_told_to_spread_more(settings, named):
    ways = remedies(*settings).holding(GPU0)
    assert keys(ways) == named
    assert ways[0] == "more GPUs, which share the model"
    assert ways[-1].startswith("a strategy that trains adapters only")
    for way in ways[1:-1]:  # each is accepted in place of what is there
        changed = dict(pair.split("=") for pair in [*settings, *way.split()])
        remedies(*(f"{key}={value}" for key, value in changed.items()))


def test_adapters_are_not_advised_where_they_are_trained():
    assert not any("adapters" in way for way in remedies(adapters=True).holding(GPU0))


def test_on_a_cpu_nothing_is_moved_to_the_host():
    missing = Shortage(HOST, GiB, 0)
    ways = remedies(on_gpu=False).computing(missing, 2, 64)
    assert keys(ways)[0] == "training.micro_batch_size=1"
    assert not any("offload" in way for way in ways)
    assert "engine.kind=fsdp, started on several machines, which then share the model" in ways


def test_the_hosts_memory_beside_a_gpu_is_given_back():
    settings = ["engine.kind=deepspeed", "engine.offload=optimizer"]
    for ways in (
        remedies(*settings).computing(Shortage(HOST, GiB, 0), 8, 1024),
        remedies(*settings).holding(Shortage(HOST, GiB, 0)),
    ):
        assert keys(ways) == ["engine.offload=none", "evaluation.distance=false"]


def test_answering_names_its_own_batch_and_budgets(tiny):
    encoder = Encoder(tiny.tokenizer, 256, 40)
    assert keys(answering(16, encoder)(GPU0)) == [
        "evaluation.batch_size=8",
        "tasks.prompt_tokens=128",
    ]
    assert keys(answering(1, encoder)(GPU0)) == ["tasks.prompt_tokens=128"]


# Places: each has the advice of its own.


def short(*args, **kwargs):
    raise torch.OutOfMemoryError(NEW)


def test_a_pass_in_training(tiny, monkeypatch):
    loop = build(tiny, "training.micro_batch_size=3")
    monkeypatch.setattr(loop.engine, "backward", short)
    with pytest.raises(OutOfMemoryError) as caught:
        learn(loop, stream(4))
    message = str(caught.value)
    assert "(task FOMC, step 1 of 1)" in message
    longest = max(map(len, loop.examples))
    assert f"over 2 examples of up to {longest} tokens" in message  # two packs of two
    assert "short by 10.0 GiB" in message
    assert "training.micro_batch_size=1 (here the tokens of 2 long examples met" in message
    assert "model.gradient_checkpointing=true" in message


def test_the_optimizers_first_step(tiny, monkeypatch):
    loop = build(tiny)
    monkeypatch.setattr(loop.optimizer, "step", short)
    weights = sum(p.numel() for p in tiny.module.parameters())
    told = f"while the optimizer steps, whose moments take {size(8 * weights)} over all ranks"
    with pytest.raises(OutOfMemoryError, match=told) as caught:
        learn(loop, stream(4))
    assert "micro_batch" not in str(caught.value)
    assert "adapters" in str(caught.value)


def test_a_fisher_pass_of_single_examples(tiny, monkeypatch):
    loop = build(tiny, "strategy=ewc")
    (first, _) = stream(4)

    act = type(loop.strategies[0]).after_experience

    def then(self, loop):
        monkeypatch.setattr(loop.engine, "backward", short)
        act(self, loop)

    monkeypatch.setattr(type(loop.strategies[0]), "after_experience", then)
    with pytest.raises(OutOfMemoryError, match="over 1 examples") as caught:
        learn(loop, [first])
    assert "micro_batch" not in str(caught.value)


@pytest.mark.parametrize("act", [answer, answer_loss])
def test_answering(tiny, monkeypatch, act):
    settings = resolve(override(BASE, [])).evaluation
    monkeypatch.setattr(torch.nn.Embedding, "forward", short)
    with pytest.raises(OutOfMemoryError, match=r"evaluation\.batch_size=8 \(now 16\)"):
        act(tiny, Encoder(tiny.tokenizer, 64, 8), [{"prompt": "a", "answer": "b"}], settings)


def test_loading_a_model(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "to", short)
    with pytest.raises(OutOfMemoryError, match="nothing else on that GPU"):
        load_model(ModelConfig(path="tiny", device="cpu"))
    import transformers

    monkeypatch.undo()
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: torch.empty(10**15)
    )
    with pytest.raises(OutOfMemoryError, match="fewer processes on this machine"):
        load_model(ModelConfig(path="tiny", device="cpu"))


def test_a_run_that_was_short_has_not_diverged_and_is_run_again(tmp_path, monkeypatch):
    recipe = {
        "tasks": {"only": ["FOMC"], "epochs": 1},
        "data": {"train_limit": 4, "test_limit": 2},
        "sweep": {"vary": {"seed": [1, 2]}},
    }
    step = Loop.backward
    monkeypatch.setattr(Loop, "backward", short)
    with pytest.raises(TrainingError) as caught:
        run_sweep(recipe, out=tmp_path)
    assert str(caught.value).count("short by 10.0 GiB") == 2
    for manifest in tmp_path.glob("*/manifest.json"):
        assert "diverged" not in json.loads(manifest.read_text())
    assert "Traceback" not in "".join(p.read_text() for p in tmp_path.glob("*/run.log"))
    monkeypatch.setattr(Loop, "backward", step)
    assert len(run_sweep(recipe, out=tmp_path)) == 2


# The command line, where memory does run out.

LIMITED = """
import resource, sys
from cl_mofo import loop
act = loop.Loop.training_epoch

def limited(self, **kwargs):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + {room}, -1))
    try:
        act(self, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

loop.Loop.training_epoch = limited
sys.argv = ["cl-mofo", "run", *{arguments}]
from cl_mofo.cli import main
main()
"""


def test_a_limit_of_the_process_is_told_without_a_traceback(tmp_path):
    arguments = [
        *("--out", str(tmp_path / "run"), "--set", "tasks.only=[MeetingBank]"),
        *("--set", "training.micro_batch_size=128", "--set", "optimizer.batch_size=128"),
        *("--set", "data.train_limit=128", "--set", "evaluation.initial=false"),
    ]
    code = LIMITED.format(room=200 * MiB, arguments=arguments)
    errors = tmp_path / "errors"
    code = forked.finish(forked.start(forked.script, code, told=tmp_path / "told", errors=errors))
    told = errors.read_text()
    assert code == 1, told
    assert "Traceback" not in told
    assert "cl-mofo: out of memory while a forward and backward pass was made over 128" in told
    given_back_or_not = r"( and has [\d.]+ \w+ free: short by [\d.]+ \w+)?"
    assert re.search(rf"asked for [\d.]+ \w+{given_back_or_not}\. Change", told), told
    assert "training.micro_batch_size=" in told


ONE_RANK = """
import os, sys
import torch
from cl_mofo import loop
act = loop.Loop.backward

def short(self):
    if os.environ["RANK"] == "1" and self.step == 1:
        raise torch.OutOfMemoryError({text!r})
    act(self)

loop.Loop.backward = short
torch.set_num_threads(1)
sys.argv = ["cl-mofo", "run", *{arguments}]
from cl_mofo.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_the_rank_that_was_short_says_so(tmp_path, engine):
    arguments = [
        *("--out", str(tmp_path / "run"), "--set", f"engine.kind={engine}"),
        *("--set", "tasks.only=[FOMC]", "--set", "data.train_limit=40"),
        *("--set", "model.device=cpu", "--set", "evaluation.initial=false"),
    ]
    code = ONE_RANK.format(text=NEW, arguments=arguments)
    codes = finish(start(forked.script, [code], 2, tmp_path), 200)
    told = [(tmp_path / f"{rank}.err").read_text() for rank in range(2)]
    assert codes == [1, 1]
    assert "rank 1: out of memory while a forward and backward pass" in told[1]
    assert "short by 10.0 GiB" in told[1]
    assert not any("Traceback" in text for text in told)
    assert "cl-mofo:" not in told[0]
