"""The chain of a language model: trained in transformers, then chat, GGUF, a BitNet folder, our own checkpoint."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bittorch import (
    TernaryQuantConfig,
    export_for_inference,
    load_ternary_inference_checkpoint,
    quantize_,
    quantize_model,
    save_ternary_inference_checkpoint,
)
from bittorch.models import LanguageModel
from bittorch.models.io import FormatError, LossyError, convert, open_checkpoint
from bittorch.utils import transformers_config
from tests import helpers

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
IDS = torch.randint(0, 300, (2, 40), generator=helpers.seeded(3))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# What a configuration becomes in training: method, granularity and so on.
CONFIGS = {
    "row": TernaryQuantConfig(method="twn"),
    "tensor": TernaryQuantConfig(method="absmean", granularity="tensor"),
    "groups": TernaryQuantConfig(group_size=64),
    "lsq": TernaryQuantConfig(method="lsq"),
    "seq of groups": TernaryQuantConfig(method="seq", group_size=128),
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "bitnet": {"bitnet": True, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "rope_parameters": LLAMA3},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
}


@pytest.fixture(autouse=True)
def _without_bittorch_hf(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of transformers as it is, also where another test has imported bittorch.hf."""
    from transformers.quantizers import auto

    monkeypatch.setattr(transformers_config, "_saveable", [])
    for mapping in (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, auto.AUTO_QUANTIZER_MAPPING):
        monkeypatch.delitem(mapping, "bittorch", raising=False)


def make(name: str = "llama", **changes: Any) -> nn.Module:
    """A dense model with values of trained size."""
    values = {**SIZES, **MODELS[name], **changes}
    if values.pop("bitnet", False):
        model = transformers.BitNetForCausalLM(transformers.BitNetConfig(**values))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def train(model: nn.Module, steps: int = 2) -> nn.Module:
    """Some steps of training, then eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def trained(name: str = "llama", config: Any = None, skip: Any = "lm_head", **changes: Any) -> nn.Module:
    model = make(name, **changes)
    quantize_(model, config or CONFIGS["row"], skip=skip)
    return train(model)


@torch.inference_mode()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    output = model(ids)
    return output if isinstance(output, Tensor) else output.logits


# FIELD N3
@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_eval_bit_for_bit(name: str, activation_bits: int | None) -> None:
    model = trained(name, TernaryQuantConfig(method="twn", activation_bits=activation_bits))
    ours = LanguageModel.from_transformers(model)
    for ids in (IDS, IDS[:1], IDS[:1, :1], IDS[:, :7]):
        helpers.assert_same_bits(logits(ours, ids), logits(model, ids))


# FIELD N3
@pytest.mark.parametrize("config", CONFIGS)
def test_own_checkpoint_keeps_every_granularity_bit_for_bit(config: str, tmp_path: Path) -> None:
    model = trained(config=CONFIGS[config])
    LanguageModel.from_transformers(model).save_pretrained(tmp_path / "model")
    helpers.assert_same_bits(logits(LanguageModel.from_pretrained(tmp_path / "model", tokenizer=False)), logits(model))


def again(path: Path, **options: Any) -> LanguageModel:
    return LanguageModel.from_pretrained(path, tokenizer=False, **options)


# FIELD N3
def test_bitnet_folder_is_equal_bit_for_bit(tmp_path: Path) -> None:
    model = trained("bitnet", TernaryQuantConfig(method="absmean", granularity="tensor", activation_bits=8))
    LanguageModel.from_transformers(model).save_pretrained(tmp_path / "model", to="bitnet")
    helpers.assert_same_bits(logits(again(tmp_path / "model")), logits(model))


# FIELD N3
@pytest.mark.filterwarnings("ignore:bitnet.cpp, the only program with I2_S")
@pytest.mark.parametrize("activation_bits", [None, 8])
def test_gguf_with_one_float32_scale_is_equal_bit_for_bit(activation_bits: int | None, tmp_path: Path) -> None:
    config = TernaryQuantConfig(method="twn", granularity="tensor", activation_bits=activation_bits)
    model = trained("bitnet", config)
    LanguageModel.from_transformers(model).save_pretrained(tmp_path / "model.gguf", to="gguf-i2_s")
    helpers.assert_same_bits(logits(again(tmp_path / "model.gguf")), logits(model))


# FIELD N3
@pytest.mark.parametrize(
    ("target", "config"), [("gguf-tq2_0", "row"), ("gguf-tq1_0", "tensor"), ("gguf-q2_0", "groups")]
)
def test_gguf_with_float16_scales_says_that_it_rounds_them(target: str, config: str, tmp_path: Path) -> None:
    model = trained(config=CONFIGS[config])
    ours = LanguageModel.from_transformers(model)
    with pytest.raises(LossyError, match="stores scales in float16, which changes them by up to"):
        ours.save_pretrained(tmp_path / "model.gguf", to=target)
    report = ours.save_pretrained(tmp_path / "model.gguf", to=target, allow_lossy=True)
    assert 0 < report.scale_error <= 2**-11
    assert report.ternary == 14
    error = helpers.relative_l2(logits(again(tmp_path / "model.gguf")), logits(model))
    assert 0 < error < 2e-3
    with torch.no_grad():  # scales that float16 holds: nothing is rounded
        for module in ours.modules():
            if hasattr(module, "weight_packed"):
                module.scale.copy_(module.scale.half().float())
    ours.save_pretrained(tmp_path / "exact.gguf", to=target)
    helpers.assert_same_bits(logits(again(tmp_path / "exact.gguf")), logits(ours))


def test_formats_that_cannot_hold_the_granularity_say_so(tmp_path: Path) -> None:
    ours = LanguageModel.from_transformers(trained(config=TernaryQuantConfig(method="twn", activation_bits=8)))
    with pytest.raises(LossyError, match=r"has scales \(256,\), transformers' BitNet one for the tensor"):
        ours.save_pretrained(tmp_path / "model", to="bitnet")
    with pytest.raises(LossyError, match=r"I2_S one for the tensor"):
        ours.save_pretrained(tmp_path / "model.gguf", to="gguf-i2_s")
    assert not list(tmp_path.iterdir())


# FIELD N3
@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("name", ["llama", "tied"])
def test_ternary_head(name: str, activation_bits: int | None, tmp_path: Path) -> None:
    model = trained(name, TernaryQuantConfig(method="twn", activation_bits=activation_bits), skip=())
    ours = LanguageModel.from_transformers(model)
    assert ours.lm_head.activation_bits == activation_bits
    helpers.assert_same_bits(logits(ours), logits(model))
    ours.save_pretrained(tmp_path / "model")
    helpers.assert_same_bits(logits(again(tmp_path / "model")), logits(model))


# FIELD N3
def test_layers_of_several_kinds_side_by_side(tmp_path: Path) -> None:
    int8 = TernaryQuantConfig(method="twn", activation_bits=8)
    mixed = {"*.q_proj": int8, "*.k_proj": CONFIGS["groups"], "*.up_proj": CONFIGS["tensor"], "*.o_proj": int8}
    model = trained("biases", mixed, skip="lm_head")
    ours = LanguageModel.from_transformers(model)
    helpers.assert_same_bits(logits(ours), logits(model))
    ours.save_pretrained(tmp_path / "model")
    helpers.assert_same_bits(logits(again(tmp_path / "model")), logits(model))
    with pytest.raises(LossyError, match="has activation_bits=None, other layers have 8; bitnet has one value"):
        ours.save_pretrained(tmp_path / "other", to="bitnet")


def test_planes_and_packed_models(tmp_path: Path) -> None:
    planes = quantize_model(make(), depth=3, skip="lm_head").eval()
    helpers.assert_same_bits(logits(LanguageModel.from_transformers(planes)), logits(planes))
    model = trained()
    helpers.assert_same_bits(logits(LanguageModel.from_transformers(export_for_inference(model))), logits(model))


def test_dense_models_are_taken_as_they_are() -> None:
    model = make().eval()
    assert helpers.relative_l2(logits(LanguageModel.from_transformers(model)), logits(model)) < 1e-6


def test_half_models_differ_by_rounding_alone() -> None:
    model = make().bfloat16()
    quantize_(model, CONFIGS["row"], skip="lm_head")
    model.eval()
    ours = LanguageModel.from_transformers(model)
    assert ours.dtype == torch.bfloat16
    exact = logits(LanguageModel.from_transformers(export_for_inference(model).float()))
    assert helpers.relative_l2(logits(ours), exact) < 1.2 * helpers.relative_l2(logits(model), exact)


@pytest.mark.parametrize(("ends", "all_ends"), [([7, 2], (2, 7)), (9, (2, 9)), (None, (2,))], ids=str)
def test_end_tokens_of_the_generation_config_count(ends: Any, all_ends: tuple[int, ...], tmp_path: Path) -> None:
    """Without a tokenizer too, whose files alone had them: answers went on behind them."""
    model = make()
    model.generation_config.eos_token_id = ends
    LanguageModel.from_transformers(model).save_pretrained(tmp_path / "out")
    assert LanguageModel.from_transformers(model).config.eos_token_ids == all_ends
    assert again(tmp_path / "out").config.eos_token_ids == all_ends


def test_training_on_leaves_the_language_model_alone() -> None:
    model = trained()
    ours = LanguageModel.from_transformers(model)
    before = logits(ours)
    train(model.train())
    helpers.assert_same_bits(logits(ours), before)


def test_what_is_not_supported_is_refused_by_name() -> None:
    small = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2}
    with pytest.raises(FormatError, match=r"configuration of GPT2LMHeadModel.*'gpt2'.*bitnet, .*llama"):
        LanguageModel.from_transformers(transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)))
    with pytest.raises(TypeError, match="must be a model of transformers, which has a config; got Linear"):
        LanguageModel.from_transformers(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="LlamaModel has no head, lm_head"):
        LanguageModel.from_transformers(trained().model)
    with pytest.raises(
        ValueError, match=r"cannot export model\.layers\.0\.self_attn\.q_proj: method 'ttq' has two scales"
    ):
        LanguageModel.from_transformers(trained(config=TernaryQuantConfig(method="ttq")))
    with pytest.raises(
        TypeError, match=r"tokenizer must be one of transformers or a bittorch\.models\.Tokenizer, got str"
    ):
        LanguageModel.from_transformers(trained(), "path")


# FIELD T7
def test_adapters_are_refused() -> None:
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(trained(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"PeftModel has adapters, such as .*q_proj\.lora_A"):
        LanguageModel.from_transformers(tuned)


def test_fused_norms_are_a_choice(tmp_path: Path) -> None:
    model = trained("bitnet", TernaryQuantConfig(method="absmean", granularity="tensor", activation_bits=8))
    fused = LanguageModel.from_transformers(model, fuse_norms=True)
    assert 0 < helpers.relative_l2(logits(fused), logits(model)) < 0.02
    fused.save_pretrained(tmp_path / "model")
    helpers.assert_same_bits(logits(again(tmp_path / "model")), logits(fused))
    helpers.assert_same_bits(logits(again(tmp_path / "model", fuse_norms=False)), logits(model))
    with pytest.raises(TypeError, match="fuse_norms must be True, False or 'auto', got 1"):
        again(tmp_path / "model", fuse_norms=1)


# What transformers itself saves: masters, with a record of how they are quantised


# FIELD N3
@pytest.mark.parametrize(
    ("name", "config", "skip"),
    [
        ("llama", CONFIGS["row"], "lm_head"),
        ("bitnet", TernaryQuantConfig(method="absmean", granularity="tensor", activation_bits=8), ()),
        ("biases", CONFIGS["seq of groups"], ()),
        ("llama", {"*.q_proj": TernaryQuantConfig(activation_bits=8), "*.mlp.*": CONFIGS["lsq"]}, ()),
    ],
)
def test_saved_masters_load_as_the_trained_model(name: str, config: Any, skip: Any, tmp_path: Path) -> None:
    model = trained(name, config, skip=skip)
    model.save_pretrained(tmp_path / "masters")
    helpers.assert_same_bits(logits(again(tmp_path / "masters")), logits(model))
    with open_checkpoint(tmp_path / "masters") as checkpoint:
        assert checkpoint.format == "masters"
        assert checkpoint.info("model.layers.0.self_attn.q_proj.weight").ternary
    convert(tmp_path / "masters", tmp_path / "packed", to="bittorch")
    helpers.assert_same_bits(logits(again(tmp_path / "packed")), logits(model))


# FIELD N3
def test_half_masters_load_as_the_trained_model(tmp_path: Path) -> None:
    model = make().bfloat16()
    quantize_(model, CONFIGS["row"], skip="lm_head")
    model.save_pretrained(tmp_path / "masters")
    expected = LanguageModel.from_transformers(model)
    helpers.assert_same_bits(logits(again(tmp_path / "masters")), logits(expected))


# FIELD N3
def test_masters_that_are_not_those_of_the_record_are_refused(tmp_path: Path) -> None:
    student = trained()
    teacher = transformers.LlamaForCausalLM(student.config)  # a dense model with the same configuration object
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(FormatError, match=r"q_proj as ternary, but its weight is not that of the ternary layer"):
        again(tmp_path / "teacher")
    student.save_pretrained(tmp_path / "student")
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    train(dense).save_pretrained(tmp_path / "dense")
    with pytest.raises(FormatError, match=r"remove quantization_config from config\.json to load the weights dense"):
        again(tmp_path / "dense")
    quantize_(dense, CONFIGS["row"], skip="lm_head")
    train(dense).save_pretrained(tmp_path / "again")
    helpers.assert_same_bits(logits(again(tmp_path / "again")), logits(dense))


# FIELD N3
def test_masters_without_names_are_refused(tmp_path: Path) -> None:
    model = make()
    for layer in model.model.layers:
        quantize_(layer.mlp, CONFIGS["row"])  # has the configuration of the model, and not its names
    model.save_pretrained(tmp_path / "masters")
    with pytest.raises(FormatError, match="6 ternary layers whose names it does not record"):
        again(tmp_path / "masters")
    quantize_(model, CONFIGS["row"], skip="lm_head")
    model.save_pretrained(tmp_path / "named")
    helpers.assert_same_bits(logits(again(tmp_path / "named")), logits(model.eval()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda record: record.update(version=2),
            "stored 'masters' and version 2; this bittorch reads 'masters' and 1",
        ),
        (
            lambda record: record["configs"][0].update(method="none"),
            "quantization_config of bittorch is damaged: method",
        ),
        (lambda record: record["layers"][0].update(config=7), "damaged: list index out of range"),
        (
            lambda record: record["layers"][0].update(name="lm_head.extra"),
            r"'lm_head\.extra' as a ternary layer with a",
        ),
        (
            lambda record: record["configs"][0].update(method="lsq", scale=None, threshold_factor=None),
            "needs a weight_sc",
        ),
    ],
)
def test_damaged_records_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    change(values["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(FormatError, match=message):
        again(tmp_path)


# FIELD T10
def test_packed_models_refuse_save_pretrained_without_bittorch_hf(tmp_path: Path) -> None:
    model = trained()
    planes = quantize_model(make(), depth=2, skip="lm_head")
    for packed in (export_for_inference(model), planes, copy.deepcopy(planes), pickle.loads(pickle.dumps(planes))):
        with pytest.raises(
            NotImplementedError, match=r"LlamaForCausalLM has packed ternary layers, which transformers"
        ):
            packed.save_pretrained(tmp_path / "model")
    save_ternary_inference_checkpoint(planes, tmp_path / "planes.safetensors")
    with pytest.raises(NotImplementedError, match="packed ternary layers"):
        load_ternary_inference_checkpoint(make(), tmp_path / "planes.safetensors").save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.save_pretrained(tmp_path / "model")  # the model that was exported is as it was
    ours = LanguageModel.from_transformers(planes)
    ours.save_pretrained(tmp_path / "planes")
    helpers.assert_same_bits(logits(again(tmp_path / "planes")), logits(planes.eval()))
