"""Depth by the activations of batches while transformers loads a model, against bittorch's own route."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bittorch
from bittorch import Calibration
from tests import helpers
from tests.hf import tiny

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import bittorch.hf  # noqa: E402

AutoCausal, TernaryConfig = transformers.AutoModelForCausalLM, bittorch.hf.TernaryConfig
BATCHES = [{"input_ids": torch.randint(3, 96, (4, 64), generator=helpers.seeded(i))} for i in range(2)]


def test_logits_are_those_of_quantize_model(tmp_path: Path) -> None:
    model, told = tiny.llama(), []
    calibration = Calibration(BATCHES, progress=lambda done, *_: told.append(done))
    dense = tiny.saved(model, tmp_path / "dense")
    config = TernaryConfig(depth=2, group_size=16, calibrate=calibration)
    loaded = AutoCausal.from_pretrained(dense, quantization_config=config)
    assert told == list(range(1, 15))
    own = bittorch.TernaryQuantConfig(group_size=16)
    expected = tiny.logits(bittorch.quantize_model(model, own, skip="lm_head", depth=2, calibrate=BATCHES))
    helpers.assert_same_bits(tiny.logits(loaded), expected)
    rounded = AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(depth=2, group_size=16))
    errors = [helpers.relative_l2(tiny.logits(each), tiny.logits(model)) for each in (loaded, rounded)]
    assert errors[0] < 0.8 * errors[1]
    folder = tiny.saved(loaded, tmp_path / "packed")
    helpers.assert_same_bits(tiny.logits(AutoCausal.from_pretrained(folder)), expected)
    assert "calibrate" not in json.loads((folder / "config.json").read_text())["quantization_config"]
    assert loaded.config.quantization_config.calibrate is None  # nor does the model hold the batches
    assert config.calibrate is calibration


def test_transposed_layers_and_experts_too(tmp_path: Path) -> None:
    sizes = {**tiny.SIZES, "num_hidden_layers": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    models = {
        "gpt2": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=64, n_head=4, n_layer=1, vocab_size=96, n_positions=64, bos_token_id=0, eos_token_id=1
            )
        ),
        "mixtral": transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)),
    }
    for name, model in models.items():
        dense = tiny.saved(model.eval(), tmp_path / name)
        config = TernaryConfig(depth=4, calibrate=Calibration(BATCHES, search=False, rounds=0))
        loaded = AutoCausal.from_pretrained(dense, quantization_config=config)
        assert helpers.relative_l2(tiny.logits(loaded), tiny.logits(model)) < 0.05
        again = AutoCausal.from_pretrained(tiny.saved(loaded, tmp_path / f"{name} packed"))
        helpers.assert_same_bits(tiny.logits(again), tiny.logits(loaded))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibrate chooses the planes of a depth"):
        TernaryConfig(calibrate=BATCHES)
    with pytest.raises(ValueError, match="calibrate has no batch"):
        TernaryConfig(depth=2, calibrate=[])
    dense = tiny.saved(tiny.llama(), tmp_path)
    config = TernaryConfig(depth=2, calibrate=BATCHES)
    with pytest.raises(ValueError, match=r"dtype is torch.bfloat16; give from_pretrained dtype=torch.float32"):
        AutoCausal.from_pretrained(dense, quantization_config=config, dtype=torch.bfloat16)
    broken = tiny.llama()
    broken.get_submodule(tiny.Q_PROJ).weight.data[0, 0] = torch.nan
    tiny.saved(broken, tmp_path / "broken")
    with pytest.raises(ValueError, match=f"cannot convert {tiny.Q_PROJ}: .*NaN or Inf"):
        AutoCausal.from_pretrained(tmp_path / "broken", quantization_config=config)
