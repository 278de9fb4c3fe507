"""Against transformers with the same weights, and against itself in other company."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bittorch.models import LanguageModel, LoadOptions
from bittorch.models.io import CheckpointWarning, FormatError
from bittorch.nn import TernaryLinearInference
from tests import helpers
from tests.models import tiny

transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def bitnet(**changes: Any) -> nn.Module:
    config = transformers.BitNetConfig(**SIZES, rope_theta=5e5, tie_word_embeddings=True, **changes)
    return randomized(transformers.BitNetForCausalLM(config))


def llama(**changes: Any) -> nn.Module:
    return randomized(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **changes})))


def randomized(model: nn.Module) -> nn.Module:
    """Values of trained size: transformers' own initial ones are so small that errors would hide."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


MODELS = {
    "bitnet": bitnet,
    "llama": llama,
    "llama biases": lambda: llama(attention_bias=True, mlp_bias=True, head_dim=32, rope_parameters=LLAMA3),
    "llama without groups": lambda: llama(tie_word_embeddings=True, num_key_value_heads=4),
}
IDS = torch.randint(0, 300, (3, 40), generator=helpers.seeded(3))


def load(model: nn.Module, path: Path, **options: Any) -> LanguageModel:
    model.save_pretrained(path)
    return LanguageModel.from_pretrained(path, tokenizer=False, **options)


@torch.inference_mode()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    output = model(ids)
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize("name", MODELS)
def test_logits_in_fp32_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = MODELS[name]()
    ours = load(theirs, tmp_path)
    assert ours.dtype == torch.float32
    assert float((logits(ours, IDS) - logits(theirs, IDS)).abs().max()) < 1e-4


def changed(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes the tensors of a directory, and no entry of its config.json."""
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def test_a_stored_head_counts_where_the_configuration_says_tied(tmp_path: Path) -> None:  # FIELD L2
    """A head that differs is taken, as transformers takes it; one that is equal says nothing new."""
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    changed(tmp_path, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        tied = LanguageModel.from_pretrained(tmp_path, tokenizer=False)
    assert tied.lm_head.weight is tied.embed_tokens.weight
    changed(tmp_path, lambda state: state["lm_head.weight"].mul_(-1))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with pytest.warns(CheckpointWarning, match=r"tie_word_embeddings true, but the stored lm_head\.weight differs"):
        ours = LanguageModel.from_pretrained(tmp_path, tokenizer=False)
    assert float((logits(ours, IDS) - logits(theirs, IDS)).abs().max()) < 1e-4
    assert float((logits(ours, IDS) + logits(tied, IDS)).abs().max()) < 1e-4


def test_a_tied_weight_may_be_stored_as_the_head(tmp_path: Path) -> None:
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    changed(tmp_path, lambda state: state.update({"lm_head.weight": state.pop("model.embed_tokens.weight")}))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ours = LanguageModel.from_pretrained(tmp_path, tokenizer=False)
    assert float((logits(ours, IDS) - logits(theirs, IDS)).abs().max()) < 1e-4


def test_a_bias_that_is_not_finite_is_refused(tmp_path: Path) -> None:  # FIELD R18
    llama(attention_bias=True).save_pretrained(tmp_path)
    changed(tmp_path, lambda state: state["model.layers.1.self_attn.k_proj.bias"][3:4].fill_(float("nan")))
    with pytest.raises(FormatError, match=r"layers\.1\.self_attn\.k_proj\.bias holds NaN or Inf"):
        LanguageModel.from_pretrained(tmp_path, tokenizer=False)


def test_base_models_and_biases_of_q_k_v_alone(tmp_path: Path) -> None:  # FIELD L14
    """Names without ``model.``, and no bias of o: what transformers opens."""
    llama(tie_word_embeddings=True, attention_bias=True).save_pretrained(tmp_path)

    def change(state: dict[str, Tensor]) -> None:
        for name in list(state):
            value = state.pop(name)
            if not name.endswith("o_proj.bias"):
                state[name.removeprefix("model.")] = value

    changed(tmp_path, change)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with pytest.warns(CheckpointWarning, match="attention_bias true, but no o_proj.bias is stored"):
        ours = LanguageModel.from_pretrained(tmp_path, tokenizer=False)
    assert float((logits(ours, IDS) - logits(theirs, IDS)).abs().max()) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_logits_in_bf16_are_as_near_to_fp32_as_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = MODELS[name]()
    exact = logits(theirs, IDS)
    theirs = theirs.bfloat16()
    ours = load(theirs, tmp_path)
    assert ours.dtype == torch.bfloat16
    exact = logits(load(theirs, tmp_path, dtype=torch.float32), IDS)
    noise = helpers.relative_l2(logits(theirs, IDS), exact)
    assert helpers.relative_l2(logits(ours, IDS), exact) < 1.2 * noise


@pytest.mark.parametrize("name", ["bitnet", "llama biases"])
def test_greedy_tokens_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = MODELS[name]()
    ours = load(theirs, tmp_path)
    prompt = IDS[:1, :9]
    with torch.inference_mode():
        expected = theirs.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    got = ours.stream(prompt.tolist(), max_new_tokens=30, ignore_eos=True).run().tokens
    assert got[0] == expected[0, 9:].tolist()


@pytest.fixture
def eager() -> Any:
    """transformers compiles its quantisers, which takes a minute and a compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


def packed_directory(theirs: nn.Module, path: Path) -> nn.Module:
    """The model with transformers' own packed layers, and a checkpoint of it as Microsoft ships them."""
    from transformers.integrations.bitnet import BitLinear, pack_weights

    state = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    for name, module in list(theirs.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            trits = helpers.random_codes(*module.weight.shape, seed=len(name))
            layer = BitLinear(module.in_features, module.out_features, False, dtype=torch.float32)
            layer.weight, layer.weight_scale = pack_weights(trits), torch.tensor([module.in_features**0.5 * 0.8])
            state[f"{name}.weight"], state[f"{name}.weight_scale"] = layer.weight, layer.weight_scale
            theirs.set_submodule(name, layer)
    path.mkdir(exist_ok=True)
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in state.items()}, path / "model.safetensors")
    config = theirs.config.to_dict()
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "bitlinear"}
    (path / "config.json").write_text(json.dumps(config))
    return theirs


@pytest.mark.usefixtures("eager")
def test_packed_layers_equal_those_of_transformers(tmp_path: Path) -> None:
    theirs = packed_directory(bitnet(), tmp_path)
    ours = LanguageModel.from_pretrained(tmp_path, tokenizer=False, dtype=torch.float32)
    x = helpers.randn(7, 64)
    for layer, own in zip(theirs.model.layers, ours.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        assert own.self_attn.qkv_proj.activation_bits == 8
        qkv = torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], -1)
        helpers.assert_near(own.self_attn.qkv_proj(x), qkv, 1e-6)
        helpers.assert_near(own.self_attn.o_proj(x), attention.o_proj(x), 1e-6)
        gate_up = torch.cat([mlp.gate_proj(x), mlp.up_proj(x)], -1)
        helpers.assert_near(own.mlp.gate_up_proj(x), gate_up, 1e-6)
        wide = helpers.randn(7, 96)
        helpers.assert_near(own.mlp.down_proj(wide), mlp.down_proj(wide), 1e-6)


@pytest.mark.usefixtures("eager")
def test_a_packed_model_equals_that_of_transformers(tmp_path: Path) -> None:
    theirs = packed_directory(bitnet(), tmp_path)
    ours = LanguageModel.from_pretrained(tmp_path, tokenizer=False, dtype=torch.float32)
    assert isinstance(ours.layers[0].mlp.gate_up_proj, TernaryLinearInference)
    # A rounding error of 1e-7 can move an activation to the next of 255 steps, and that the next layer's.
    assert helpers.relative_l2(logits(ours, IDS), logits(theirs, IDS)) < 0.02
    expected = logits(theirs, IDS)
    top = expected.topk(2).values
    sure = (top[..., 0] - top[..., 1]) > 0.1 * expected.std()
    assert bool(sure.float().mean() > 0.3)
    assert torch.equal(logits(ours, IDS).argmax(-1)[sure], expected.argmax(-1)[sure])


@pytest.mark.parametrize("ternary", [True, False])
def test_a_cache_changes_nothing(ternary: bool) -> None:
    model = tiny.model(ternary=ternary, activation_bits=None)
    ids = IDS[:2]
    cache = model.new_cache(2, 64)
    parts = [model(part, cache) for part in ids.split([17, 1, 1, 6, 15], 1)]
    assert cache.lengths == [40, 40]
    helpers.assert_near(torch.cat(parts, 1), model(ids), 2e-5)


def test_sequences_of_any_lengths_are_as_alone() -> None:
    model = tiny.model()
    prompts = tiny.prompts(5, 17, 1, 9)
    counts = [len(prompt) for prompt in prompts]
    tokens = torch.tensor([token for prompt in prompts for token in prompt])
    together = model.step(tokens, counts).split(counts)
    for prompt, part in zip(prompts, together, strict=True):
        helpers.assert_same_bits(part, model(torch.tensor([prompt]))[0])
    helpers.assert_same_bits(model.step(tokens, counts, last_only=True), torch.stack([part[-1] for part in together]))


def test_rows_of_the_cache_may_be_left_out() -> None:
    model = tiny.model()
    prompts = tiny.prompts(5, 8, 6)
    cache = model.new_cache(3, 16)
    model.step(torch.tensor([token for prompt in prompts for token in prompt]), [5, 8, 6], cache)
    got = model.step(torch.tensor([3, 4]), [1, 1], cache, rows=[0, 2])
    assert cache.lengths == [6, 8, 7]
    for token, prompt, part in zip((3, 4), (prompts[0], prompts[2]), got, strict=True):
        alone = model.new_cache(1, 16)
        model(torch.tensor([prompt]), alone)
        helpers.assert_same_bits(part, model(torch.tensor([[token]]), alone)[0, 0])


def test_an_embedding_may_stay_a_half(tmp_path: Path) -> None:
    theirs = bitnet().bfloat16()
    wide = load(theirs, tmp_path, dtype=torch.float32, head_depth=6, activation_bits=None)
    assert wide.embed_tokens.weight.dtype == torch.bfloat16
    assert wide.layers[0].input_layernorm.weight.dtype == torch.float32
    dense = load(theirs, tmp_path, dtype=torch.float32)
    assert dense.lm_head.weight is dense.embed_tokens.weight
    helpers.assert_near(logits(wide, IDS), logits(dense, IDS), 0.005)  # six planes round to 1 / 728 of the largest


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
def test_ternary_models_with_a_float16_embedding_have_the_range_of_float32(tied: bool, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.CONFIG, tie_embeddings=tied)
    values = tiny.tensors(config)
    for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
        values[name] = values[name].half()
    for name in values:  # gate * up is beyond 65504, which the norm behind it takes back
        if name.endswith("post_attention_layernorm.weight"):
            values[name] = values[name] * 300
    model = LanguageModel.from_checkpoint(tiny.checkpoint(config, values), tokenizer=False)
    assert model.dtype == torch.float32
    assert model.embed_tokens.weight.dtype == model.lm_head.weight.dtype == torch.float16
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied
    assert model.layers[0].input_layernorm.weight.dtype == torch.float32
    asked = LanguageModel.from_checkpoint(
        tiny.checkpoint(config, values), LoadOptions(dtype=torch.float32), tokenizer=False
    )
    assert asked.lm_head.weight.dtype == torch.float16  # multiplied in float32
    widened = {name: v.float() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
    wide = LanguageModel.from_checkpoint(tiny.checkpoint(config, widened), tokenizer=False)
    assert wide.lm_head.weight.dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(model(IDS), asked(IDS))
        helpers.assert_near(model(IDS), wide(IDS).double(), 1e-6)
        narrow = LanguageModel.from_checkpoint(
            tiny.checkpoint(config, values), LoadOptions(dtype=torch.float16), tokenizer=False
        )
        assert not bool(narrow(IDS).isfinite().all())
    model.save_pretrained(tmp_path / "saved")
    again = LanguageModel.from_pretrained(tmp_path / "saved", tokenizer=False)
    assert again.embed_tokens.weight.dtype == torch.float16
    assert torch.equal(logits(again, IDS), logits(model, IDS))


def test_dense_models_stored_in_float16_run_in_it() -> None:
    values = {name: value.half() for name, value in tiny.tensors(tiny.CONFIG, ternary=False).items()}
    model = LanguageModel.from_checkpoint(tiny.checkpoint(tiny.CONFIG, values), tokenizer=False)
    assert model.dtype == torch.float16


@pytest.mark.filterwarnings("ignore:group_size=16")
@pytest.mark.parametrize(("depth", "group_size", "limit"), [(6, 0, 0.02), (6, None, 0.02), (6, 16, 0.01), (2, 16, 0.6)])
def test_depth_converts_dense_layers(depth: int, group_size: int | None, limit: float, tmp_path: Path) -> None:
    theirs = llama()
    ours = load(theirs, tmp_path, depth=depth, group_size=group_size)
    layer = ours.layers[0].self_attn.qkv_proj
    assert isinstance(layer, TernaryLinearInference)
    groups = {None: 1, 0: 1, 16: 4}[group_size]  # a row of 64 is one group
    assert (layer.depth, layer.activation_bits, layer.groups) == (depth, 16, groups)
    error = helpers.relative_l2(logits(ours, IDS), logits(theirs, IDS))
    assert limit / 20 < error < limit


def test_bad_input_has_both_values() -> None:
    model = tiny.model()
    with pytest.raises(ValueError, match=r"\(rows, tokens\), got \(3,\)"):
        model(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="from 0 to 299, got 5 to 300"):
        model(torch.tensor([[5, 300]]))
    with pytest.raises(ValueError, match="context of 128 tokens, got a sequence of 129"):
        model(torch.zeros(1, 129, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one token"):
        model(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens must be \(3,\)"):
        model.step(torch.tensor([1, 2]), [1, 2])
    with pytest.raises(ValueError, match="no room for 3"):
        model(torch.tensor([[1, 2, 3]]), model.new_cache(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 7}, "from 1 to 6, got 7"),
        ({"head_depth": 0}, "from 1 to 6, got 0"),
        ({"group_size": 64}, "give depth or head_depth too"),
        ({"dtype": torch.float64}, "got torch.float64"),
        ({"activation_bits": 4}, "activation_bits"),
        ({"kv_cache": "int8"}, "one of auto, float32, bfloat16, float16, got 'int8'"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadOptions(**options)


def test_groups_that_only_the_portable_kernel_takes_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="group_size=32 is no multiple of 64"):
        LoadOptions(depth=2, group_size=32)


def test_loading_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny.model()
    assert model.device == torch.device("cpu")
    assert not model.training


@pytest.mark.slow
def test_loading_draws_no_random_numbers_and_compiles_nothing(tmp_path: Path) -> None:
    tiny.model(ternary=False).save_pretrained(tmp_path / "model")
    code = f"""
import sys, torch
from bittorch.models import LanguageModel
torch.manual_seed(1)
before = torch.get_rng_state()
for options in ({{}}, {{"depth": 2, "head_depth": 2}}):
    LanguageModel.from_pretrained({str(tmp_path / "model")!r}, tokenizer=False, **options)
assert torch.equal(before, torch.get_rng_state())
assert "torch._dynamo" not in sys.modules  # a second and a half
"""
    done = helpers.run_python(code)
    assert done.returncode == 0, done.stderr
