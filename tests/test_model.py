"""Loading a model: what is refused, and how settings reach it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cl_mofo import mini
from cl_mofo.config import ModelConfig
from cl_mofo.errors import UserError
from cl_mofo.model import check_positions, load_model, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded model's folder, to be damaged."""
    return shutil.copytree(mini.tiny_path(), tmp_path / "model")


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        load_model(ModelConfig(path=str(folder)))
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_weights_are_float32_and_settings_reach_the_model():
    loaded = load_model(
        ModelConfig(path="tiny", compute_dtype="bfloat16", gradient_checkpointing=True)
    )
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert loaded.compute_dtype == torch.bfloat16
    assert loaded.module.is_gradient_checkpointing
    with loaded.autocast():
        assert loaded.module(torch.tensor([[1, 5]])).logits.dtype == torch.bfloat16


def test_a_cpu_computes_in_float32_unless_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_model(ModelConfig(path="tiny")).compute_dtype == torch.float32


def test_missing_weights_are_never_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 9 of the model's tensors" in refusal(folder)


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    refusal(folder)


@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_damaged_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "cannot be loaded" in refusal(folder)


def test_pickled_weights_are_not_read(folder):
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "cannot be loaded" in refusal(folder)


def test_a_tokenizer_of_another_model(folder):
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    config["vocab_size"] = 500
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:500].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    assert "another model's" in refusal(folder)


def test_a_tokenizer_without_an_end(folder):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["eos_token"]
    file.write_text(json.dumps(config))
    assert "no end-of-sequence token" in refusal(folder)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2"])
def test_a_tokenizer_that_is_not_there(folder, model_type):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    with pytest.raises(UserError, match=r"tokenizer|cannot be loaded"):
        load_tokenizer(ModelConfig(path=str(folder)))


def test_a_folder_that_is_no_checkpoint(tmp_path):
    assert "no config.json" in refusal(tmp_path)


def test_remote_code_is_not_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "of_its_own",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    refusal(folder)


def test_too_few_positions(tiny):
    check_positions(tiny, 2048, "task X")
    with pytest.raises(UserError, match=r"task X: .* 2049 tokens, but the model has 2048"):
        check_positions(tiny, 2049, "task X")
