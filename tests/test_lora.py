"""LoRA: only adapters learn, evaluation leaves no trace, and both saved forms answer alike."""

import copy
import math
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file

from cl_mofo import mini, run
from cl_mofo.checkpoint import load_state
from cl_mofo.data.plan import encoder_for, plan_tasks
from cl_mofo.data.suites import load_suite
from cl_mofo.discovery import registry
from cl_mofo.errors import UserError
from cl_mofo.evaluation.generate import answer
from cl_mofo.folder import RunFolder
from cl_mofo.manifest import manifest
from cl_mofo.model import LanguageModel
from cl_mofo.observer import Observer
from cl_mofo.recipes import override
from cl_mofo.resolve import resolve, strategies_of
from cl_mofo.sequence import TaskSequence
from cl_mofo.strategies.lora import LoRA, low_rank_update, target_layers
from tests.test_loop import BASE, learn, stream
from tests.test_loop import build as build_loop
from tests.test_strategies import Watch, build
from tests.test_strategies import stream as two_experiences
from tests.test_strategies import weights as all_weights

RECIPE = override(
    {**BASE, "strategy": "lora"},
    [
        "tasks.answer_tokens=8",
        "data.train_limit=8",
        "data.test_limit=3",
        "evaluation.initial=true",
        "optimizer.lr=1e-2",
        "lora.rank=4",
    ],
)
IDS = torch.tensor([[5, 17, 300, 41, 9, 88, 250, 7], [1, 2, 3, 4, 500, 600, 700, 800]])


def untied(language_model):
    """Give the model a head of its own, unlike its embedding."""
    module = language_model.module
    module.config.tie_word_embeddings = False
    generator = torch.Generator().manual_seed(0)
    weight = module.lm_head.weight.detach().clone()
    noise = torch.randn(weight.shape, generator=generator)
    module.lm_head.weight = torch.nn.Parameter(weight + 0.02 * noise)
    return language_model


def logits(module):
    with torch.no_grad():
        return module.eval()(IDS).logits


def drawn(loop):
    """Draw every adapter's B, which is zero at the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in loop.engine.trainable.items():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return loop


def lora_loop(language_model, *assignments, **settings):
    return build_loop(
        language_model, *assignments, strategies=[LoRA(LoRA.Config(**{"rank": 4, **settings}))]
    )


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


# The mathematics.


def test_an_update_worked_by_hand():
    a = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
    b = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    # B A = [[1, 2, 0], [2, 3, 3]], alpha / rank = 3 / 2.
    expected = torch.tensor([[1.5, 3.0, 0.0], [3.0, 4.5, 4.5]])
    assert torch.equal(low_rank_update(a, b, alpha=3.0, rank=2), expected)


def test_the_layer_adds_the_update_that_peft_says(tiny):
    loop = drawn(lora_loop(tiny, alpha=12.0, dropout=0.0))
    layer = loop.model.model.layers[1].mlp.down_proj
    update = low_rank_update(layer.lora_A["default"].weight, layer.lora_B["default"].weight, 12, 4)
    assert torch.equal(update, layer.get_delta_weight("default"))
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2))
    expected = x @ (layer.get_base_layer().weight + update).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_adapters_get_their_share_of_the_full_gradient(tiny):
    plain = copy.deepcopy(tiny)
    loop = drawn(lora_loop(tiny, alpha=12.0, dropout=0.5))
    plain.module.load_state_dict(loop.weights(loop.model), strict=False)
    gradients = []
    for each in (loop, build_loop(plain)):
        examples = each.encoded(mini.records()["FOMC"]["train"][:4], each.plans[0])
        each.replace_gradients(each.micro_batches(examples))  # without dropout
        gradients.append({n: p.grad for n, p in each.engine.trainable.items()})
    adapters, full = gradients
    assert len(adapters) == 2 * len(loop.strategies[0].layers)
    for name in loop.strategies[0].layers:
        # W' = W + s B A, so by the chain rule dA = s B^T G and dB = s G A^T, with G = dL/dW'.
        g, s = full[f"{name}.weight"], 12.0 / 4
        a_name, b_name = (f"{name}.lora_{x}.default.weight" for x in "AB")
        a, b = loop.engine.trainable[a_name], loop.engine.trainable[b_name]
        torch.testing.assert_close(adapters[a_name], s * b.T @ g, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(adapters[b_name], s * g @ a.T, rtol=1e-3, atol=1e-5)


# What is adapted.


def test_targets(tiny):
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    peft_model = inject_adapter_in_model(
        LoraConfig(target_modules="all-linear"), copy.deepcopy(tiny.module)
    )
    pefts = [n for n, part in peft_model.named_modules() if isinstance(part, LoraLayer)]
    assert target_layers(tiny.module, "all-linear") == pefts
    assert len(pefts) == 4 * 7  # q, k, v, o, gate, up and down in four layers
    attention = [n for n in pefts if "self_attn" in n]
    assert target_layers(tiny.module, "attention") == attention
    assert len(attention) == 4 * 4
    two = [f"model.layers.{i}.self_attn.{x}_proj" for i in range(4) for x in "qv"]
    assert target_layers(tiny.module, ["v_proj", "q_proj"]) == two
    assert target_layers(tiny.module, ["layers.2.mlp.up_proj"]) == ["model.layers.2.mlp.up_proj"]


@pytest.mark.parametrize("targets", [["q_proj", "proj"], ["lm_head"], ["embed_tokens"]])
def test_a_target_that_is_not_there_stops_before_anything_is_written(tmp_path, targets):
    settings = {**RECIPE, "lora": {"targets": targets}}
    with pytest.raises(UserError, match=rf"lora\.targets: {targets[-1]} names.*q_proj, k_proj"):
        run(settings, out=tmp_path / "run")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("rank=0", r"lora\.rank.*greater than or equal to 1"),
        ("rank=2.5", r"lora\.rank.*integer"),
        ("alpha=0", r"lora\.alpha.*greater than 0"),
        ("dropout=1", r"lora\.dropout.*less than 1"),
        ("targets=[]", "targets must name at least one layer"),
        ("targets=['']", "targets must name at least one layer"),
        ("targets=q_proj", r"lora\.targets.*'all-linear' or 'attention'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, told):
    with pytest.raises(UserError, match=told):
        resolve(override(RECIPE, [f"lora.{setting}"]))


def test_the_first_answers_are_the_base_models_and_only_adapters_learn(tiny):
    before = logits(tiny.module)
    names = set(snapshot(tiny.module))
    kind = type(tiny.module)
    loop = lora_loop(tiny, targets=("q_proj", "v_proj"))
    assert type(loop.model) is kind
    torch.testing.assert_close(logits(loop.model), before, rtol=0, atol=0)
    assert set(loop.weights(loop.model)) == names
    # rank * (in + out) for 128 -> 128 projections, two in each of four layers.
    assert sum(p.numel() for p in loop.engine.trainable.values()) == 4 * (128 + 128) * 2 * 4
    assert loop.strategies[0].record()["parameters"] == 4 * (128 + 128) * 2 * 4
    assert all(".lora_" in name for name in loop.engine.trainable)
    assert loop.state_dict()["model"].keys() == loop.engine.trainable.keys()


# A whole run, tied and untied.


@pytest.fixture(scope="module", params=["tied", "untied"])
def finished(request, _loaded, tmp_path_factory):
    """A run over two tasks with evaluations and a saved model, and the weights it began with."""
    language_model = LanguageModel(
        copy.deepcopy(_loaded.module), _loaded.tokenizer, _loaded.device, _loaded.compute_dtype
    )
    if request.param == "untied":
        untied(language_model)
    base = copy.deepcopy(language_model.module)
    recipe = resolve(RECIPE)
    torch.manual_seed(recipe.seed)
    plans = plan_tasks(recipe, registry())
    folder = RunFolder(tmp_path_factory.mktemp("lora") / "run", recipe.strategy)
    suite = load_suite(recipe.data, [plan.task.name for plan in plans])
    strategies = strategies_of(recipe, registry())
    sequence = TaskSequence(recipe, plans, suite, strategies, language_model, folder, Observer())
    results = sequence.learn()
    folder.close()
    return base, sequence.loop, results, folder.path


def test_a_run_leaves_the_base_weights_bits(finished):
    base, loop, results, _ = finished
    own = dict(loop.model.named_parameters())
    for name, parameter in base.named_parameters():
        owner, _, last = name.rpartition(".")
        kept = own.get(name, own.get(f"{owner}.base_layer.{last}"))
        assert torch.equal(kept, parameter)
        assert not kept.requires_grad
    assert results["finished"]
    assert all(p.count_nonzero() > 0 for n, p in loop.engine.trainable.items() if "lora_B" in n)


def test_the_distance_is_of_the_merged_weights_under_their_plain_names(finished):
    base, loop, results, _ = finished
    start = snapshot(base)
    now = loop.weights(loop.model)
    assert now.keys() == start.keys()
    relative = [((now[n] - t).norm() / t.norm()).item() for n, t in start.items()]
    assert results["distance"][-1] == pytest.approx(math.fsum(relative) / len(relative), rel=1e-5)
    for name, change in zip(start, relative, strict=True):
        assert (change > 0) == ("_proj" in name)


def test_the_saved_model_is_a_plain_checkpoint(finished):
    base, loop, _, path = finished
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module, info = transformers.AutoModelForCausalLM.from_pretrained(
            path / "model", output_loading_info=True
        )
    assert not any(info.values())
    assert type(module) is type(base)
    assert load_file(path / "model/model.safetensors").keys() == snapshot(base).keys()
    torch.testing.assert_close(logits(module), logits(loop.model), rtol=1e-5, atol=1e-5)
    assert (logits(module) - logits(base)).abs().max() > 1e-2


def test_the_saved_adapter_is_pefts(finished):
    from peft import PeftModel

    base, loop, _, path = finished
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
        adapted = PeftModel.from_pretrained(copy.deepcopy(base), path / "adapter")
    torch.testing.assert_close(logits(adapted), logits(loop.model), rtol=0, atol=0)
    size = sum(t.numel() for t in load_file(path / "adapter/adapter_model.safetensors").values())
    assert size == sum(p.numel() for p in loop.engine.trainable.values())


def test_evaluating_merges_and_leaves_no_trace(finished):
    _, loop, _, _ = finished
    before, plain = snapshot(loop.model), loop.weights(loop.model)
    places = {name: p.data_ptr() for name, p in loop.model.named_parameters()}
    encoder = encoder_for(loop.language_model.tokenizer, loop.plans[0], loop.recipe)
    rows = mini.records()["FOMC"]["eval"][:4]

    def seen():
        answers = answer(loop.language_model, encoder, rows, loop.recipe.evaluation)
        return logits(loop.model), [one.text for one in answers]

    unmerged, texts = seen()
    with loop.evaluating():
        merged, merged_texts = seen()
        layer = loop.model.model.layers[0].mlp.up_proj
        assert layer.merged
        for name, weight in loop.weights(loop.model).items():
            assert torch.equal(weight, plain[name])
        assert torch.equal(
            layer.get_base_layer().weight, plain["model.layers.0.mlp.up_proj.weight"]
        )
    torch.testing.assert_close(merged, unmerged, rtol=1e-5, atol=1e-5)
    assert merged_texts == texts
    assert not layer.merged
    for name, parameter in loop.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.data_ptr() == places[name]


# With others, and in other models.


def test_mofo_filters_every_adapter_tensor(tiny):
    mofo = registry().strategy("mofo")
    strategies = [LoRA(), mofo(mofo.Config(update_fraction=0.05))]
    loop = drawn(build_loop(tiny, strategies=strategies))
    before = snapshot(loop.model)
    learn(loop, list(stream(4))[:1])
    assert loop.global_step == 1
    for name, parameter in loop.model.named_parameters():
        moved = (parameter != before[name]).sum().item()
        # An entry chosen may round back to where it was; none may move that was not chosen.
        most = math.ceil(0.05 * parameter.numel()) if name in loop.engine.trainable else 0
        assert 0.9 * most <= moved <= most


def test_dropout_is_drawn_from_the_random_state_that_is_saved(tiny, tmp_path):
    whole, _ = build(copy.deepcopy(tiny), ["lora"], Watch(save_after=3, folder=tmp_path))
    whole.train(two_experiences(), eval_streams=[])
    ends = []
    for tampered in (False, True):
        loop, _ = build(copy.deepcopy(tiny), ["lora"], Watch())
        state = load_state(tmp_path)
        if tampered:
            state["random"]["torch"] = torch.Generator().manual_seed(7).get_state()
        loop.load_state_dict(state)
        loop.train(two_experiences()[1], eval_streams=[])
        ends.append(torch.equal(all_weights(loop), all_weights(whole)))
    assert ends == [True, False]


def test_a_state_of_another_scale_or_rank_is_refused(tiny):
    state = lora_loop(copy.deepcopy(tiny), rank=1, alpha=8.0).state_dict()
    with pytest.raises(ValueError, match=r"trained at alpha / rank 8\.0, not 16\.0"):
        lora_loop(copy.deepcopy(tiny), rank=1, alpha=16.0).load_state_dict(state)
    with pytest.raises(ValueError, match=r"lora_A\.default\.weight is \[1, 128\].*\[8, 128\]"):
        lora_loop(copy.deepcopy(tiny), rank=8, alpha=64.0).load_state_dict(state)


def test_gradient_checkpointing_changes_nothing_though_the_base_is_frozen(tiny):
    runs = []
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny)
        if checkpointing:
            model.module.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loop = lora_loop(model)  # with dropout: recomputing draws the same
        learn(loop, list(stream(10))[:1])
        runs.append(torch.cat([p.detach().flatten() for p in loop.engine.trainable.values()]))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-5, atol=1e-7)


def test_layers_that_hold_their_weight_transposed(tiny):
    config = transformers.GPT2Config(
        vocab_size=1024, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0
    )
    plain = transformers.GPT2LMHeadModel(config)
    model = LanguageModel(copy.deepcopy(plain), tiny.tokenizer, torch.device("cpu"), torch.float32)
    loop = drawn(lora_loop(model))
    assert len(loop.strategies[0].layers) == 2 * 4
    plain.load_state_dict(loop.weights(loop.model), strict=False)
    adapted = logits(loop.model)
    torch.testing.assert_close(logits(plain), adapted, rtol=0, atol=1e-5)
    with loop.evaluating():
        torch.testing.assert_close(logits(loop.model), adapted, rtol=0, atol=1e-5)


def test_the_manifest_names_pefts_version():
    import peft

    assert manifest({}, {})["versions"]["peft"] == peft.__version__
