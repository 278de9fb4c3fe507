"""The Trainer of transformers on packed models: with adapters alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bittorch import TernaryLinearInference
from tests import helpers
from tests.hf import tiny

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("accelerate")

import bittorch.hf.peft  # noqa: E402


@pytest.mark.slow
def test_trainer_takes_packed_models_with_adapters(tmp_path: Path) -> None:
    tiny.saved(tiny.llama(), tmp_path / "dense")
    config = bittorch.hf.TernaryConfig()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "learning_rate": 1e-2}
    arguments = transformers.TrainingArguments(str(tmp_path / "out"), max_steps=3, save_steps=3, **options)
    rows = torch.randint(3, 96, (16, 12), generator=helpers.seeded(1))
    data = [{"input_ids": row, "labels": row} for row in rows]
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        transformers.Trainer(model, arguments, train_dataset=data)
    bare = tiny.logits(model)
    lora = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(model, bittorch.hf.peft.register(lora, exact=True))
    transformers.Trainer(adapted, arguments, train_dataset=data).train()
    expected = tiny.logits(adapted.eval())
    assert not torch.equal(expected, bare)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    merged = bittorch.hf.peft.load(base, tmp_path / "out" / "checkpoint-3").merge_and_unload()
    helpers.assert_same_bits(tiny.logits(merged), expected)
    tiny.saved(merged, tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert isinstance(again.get_submodule(tiny.Q_PROJ), TernaryLinearInference)
    helpers.assert_same_bits(tiny.logits(again), expected)
