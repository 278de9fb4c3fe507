"""No reader or writer of checkpoints chooses silently: every choice has a name, and each name a file that shows it.

`CASES` has a smallest case for every name of `bittorch.models.io.choices.CHOICES`. A new choice without a case fails.
"""

import ast
import dataclasses
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import bittorch
from bittorch.models import LanguageModel, ModelConfig, Tokenizer
from bittorch.models.config import EMBEDDING
from bittorch.models.decoder import tensor_shapes
from bittorch.models.hadamard import Hadamard
from bittorch.models.io import CheckpointWarning, FormatError, LossyError, convert, from_memory, open_checkpoint, save
from bittorch.models.io.choices import CHOICES, recorded, refusal, warn
from bittorch.models.io.hf_config import config_to_hf
from tests.models.io.gguf_files import dense_values, write
from tests.models.io.tiny import BITNET, LLAMA, model, tensors
from tests.models.vocabularies import byte_tokenizer

Case = Callable[[Path], object]
CASES: dict[str, Case] = {}


def case(choice: str) -> Callable[[Case], Case]:
    """A function that meets this choice, once, with files in the directory that it is given."""

    def add(run: Case) -> Case:
        assert choice not in CASES, choice
        CASES[choice] = run
        return run

    return add


@case("gguf-activation")  # FIELD L1
def _(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "bitnet", BITNET, "F16", dense_values(BITNET, "F16"))
    open_checkpoint(tmp_path / "x.gguf").close()


def folder(
    path: Path, to: str = "bittorch", config: ModelConfig = BITNET, drop: str = "", **tensors: Tensor
) -> tuple[Path, dict[str, Any]]:
    """A directory, some of its tensors changed, and its config.json; names with _ for the dots."""
    save(model(config), path, to=to)
    state = load_file(path / "model.safetensors")
    with safe_open(path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    state = {name: value for name, value in state.items() if not drop or drop not in name}
    state |= {name.replace("__", "."): value for name, value in tensors.items()}
    save_file(state, path / "model.safetensors", metadata=metadata)
    return path, json.loads((path / "config.json").read_text())


def configure(path: Path, values: dict[str, Any]) -> None:
    (path / "config.json").write_text(json.dumps(values))


@case("gguf-older")
def _(tmp_path: Path) -> None:
    config = dataclasses.replace(LLAMA, architecture="minicpm")
    write(tmp_path / "x.gguf", "minicpm", config, "F16", dense_values(config, "F16"))
    with open_checkpoint(tmp_path / "x.gguf") as found:
        scales = (found.config.embedding_scale, found.config.residual_scale, found.config.logit_scale)
    assert scales == (12.0, 1.4 / 2**0.5, 1.0)  # as llama.cpp has them; hidden_size is 256


@case("gguf-activation-bits")
def _(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "bitnet-b1.58", BITNET, "F16", dense_values(BITNET, "F16"))
    open_checkpoint(tmp_path / "x.gguf").close()


@case("gguf-i2_s-layout")
def _(tmp_path: Path) -> None:
    save(model(), tmp_path / "x.gguf", to="gguf-i2_s")
    open_checkpoint(tmp_path / "x.gguf").close()


@case("hf-weight-scale")
def _(tmp_path: Path) -> None:
    path, values = folder(tmp_path / "x", "bitnet")
    del values["quantization_config"]["linear_class"]
    configure(path, values)
    open_checkpoint(path).close()


@case("tokenizer-size")
def _(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path, _ = folder(tmp_path / "x")
    byte_tokenizer().save(path)
    LanguageModel.from_pretrained(path)


@case("hf-input-norms")
def _(tmp_path: Path) -> None:
    path, values = folder(tmp_path / "x", config=dataclasses.replace(LLAMA, input_norm_eps=1e-6))
    state = load_file(path / "model.safetensors")
    kept = {name: value for name, value in state.items() if not name.endswith((".scale", ".weight_packed"))}
    masters = {name: torch.ones(shape) for name, shape in tensor_shapes(LLAMA).items() if name not in kept}
    save_file(kept | masters, path / "model.safetensors")
    configure(path, {key: value for key, value in values.items() if key not in ("quantization_config", "bittorch")})
    with open_checkpoint(path) as found:
        assert (found.format, found.config.activation_bits) == ("bitnet-online", 8)


@case("no-end-token")
def _(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path, _ = folder(tmp_path / "x", config=dataclasses.replace(BITNET, vocab_size=300, eos_token_ids=()))
    Tokenizer(byte_tokenizer().backend).save(path)
    LanguageModel.from_pretrained(path)


@case("hf-tied-head")  # FIELD L2
def _(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "x", lm_head__weight=torch.ones(24, 256))
    open_checkpoint(path).close()


@case("hf-rope")
def _(tmp_path: Path) -> None:
    path, values = folder(tmp_path / "x")
    configure(path, {**values, "rope_theta": 2 * values["rope_parameters"]["rope_theta"]})
    open_checkpoint(path).close()


@case("hf-output-bias")  # FIELD L14
def _(tmp_path: Path) -> None:
    config = dataclasses.replace(LLAMA, biases=("q_proj", "k_proj", "v_proj", "o_proj"))
    path, values = folder(tmp_path / "x", "compressed-tensors", config, drop="o_proj.bias")
    del values["bittorch"]["biases"]
    configure(path, values)
    open_checkpoint(path).close()


@case("hf-compressed-scheme")  # FIELD L12
def _(tmp_path: Path) -> None:
    path, values = folder(tmp_path / "x", "compressed-tensors", LLAMA)
    float8 = {"num_bits": 8, "type": "float", "dynamic": True}
    values["quantization_config"]["config_groups"]["group_0"]["input_activations"] = float8
    configure(path, values)
    open_checkpoint(path)


@case("all-zero-matrix")  # FIELD L14
def _(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "x", model__embed_tokens__weight=torch.zeros(24, 256))
    LanguageModel.from_pretrained(path, tokenizer=False)


@case("exact-ternary")  # FIELD L5
def _(tmp_path: Path) -> None:
    values = {name: torch.randn(shape) for name, shape in tensor_shapes(LLAMA).items()}
    values["model.layers.1.mlp.up_proj.weight"].sign_()
    save_file(values, tmp_path / "model.safetensors")
    configure(tmp_path, config_to_hf(LLAMA))
    open_checkpoint(tmp_path).close()


@case("exact-ternary-narrow")
def _(tmp_path: Path) -> None:
    values = {name: torch.randn(shape) for name, shape in tensor_shapes(LLAMA).items()}
    scale = torch.rand(512, 64).repeat_interleave(4, 1)
    values["model.layers.1.mlp.up_proj.weight"] = scale * torch.randint(-1, 2, (512, 256))
    save_file(values, tmp_path / "model.safetensors")
    configure(tmp_path, config_to_hf(LLAMA))
    open_checkpoint(tmp_path).close()


@case("gguf-entry")  # FIELD L7
def _(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "llama", LLAMA, "F16", dense_values(LLAMA, "F16"), {"prism.rotation": 64})
    open_checkpoint(tmp_path / "x.gguf")


@case("gguf-hadamard")
def _(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "llama", LLAMA, "F16", dense_values(LLAMA, "F16"), {"prism.hadamard.block_size": 64})
    open_checkpoint(tmp_path / "x.gguf")


@case("write-gguf-hadamard")
def _(tmp_path: Path) -> None:
    config = dataclasses.replace(LLAMA, hadamard=Hadamard(64, ("model.layers.0.mlp.down_proj.weight",)))
    save(model(config), tmp_path / "x.gguf", to="gguf-tq2_0")


@case("skipped-parts")
def _(tmp_path: Path) -> None:
    heads = {"delta_key_heads": 2, "delta_value_heads": 2, "delta_key_dim": 16, "delta_value_dim": 16}
    layers = {"layer_types": ("linear_attention", "full_attention"), "delta_kernel": 4, "norms_from_one": True}
    config = dataclasses.replace(LLAMA, architecture="qwen3_5", **heads, **layers)
    path, _ = folder(tmp_path / "x", config=config, mtp__fc__weight=torch.ones(2, 2))
    open_checkpoint(path).close()


@case("gguf-unrotated")
def _(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "llama", LLAMA, "PQ2_0", dense_values(LLAMA, "TQ2_0"))
    open_checkpoint(tmp_path / "x.gguf")


@case("gguf-layers")  # FIELD L14
def _(tmp_path: Path) -> None:
    heads = {"llama.attention.head_count_kv": [2, 4]}
    write(tmp_path / "x.gguf", "llama", LLAMA, "F16", dense_values(LLAMA, "F16"), heads)
    open_checkpoint(tmp_path / "x.gguf")


VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "</s>"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
}


@case("gguf-pre-tokenizer")  # FIELD L3
def _(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    Tokenizer.from_source({key: value for key, value in VOCABULARY.items() if key != "tokenizer.ggml.pre"})


@case("gguf-disputed-pre-tokenizer")
def _(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    Tokenizer.from_source({**VOCABULARY, "tokenizer.ggml.pre": "falcon_e"})


@case("gguf-tokenizer-entry")
def _(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    Tokenizer.from_source({**VOCABULARY, "tokenizer.ggml.normalizer.lowercase": True})


@case("write-i2_s-activations")  # FIELD L9
def _(tmp_path: Path) -> None:
    save(model(LLAMA), tmp_path / "x.gguf", to="gguf-i2_s")


@case("write-compressed-activations")
def _(tmp_path: Path) -> None:
    save(model(BITNET), tmp_path / "x", to="compressed-tensors")


@case("write-dense-embedding")
def _(tmp_path: Path) -> None:
    values = tensors(BITNET)
    values[EMBEDDING] = values["model.layers.0.self_attn.v_proj.weight"]
    save(from_memory(dataclasses.replace(BITNET, vocab_size=128), values, {}), tmp_path / "x", to="bitnet")


@case("write-gguf-tokenizer")  # FIELD L4
def _(tmp_path: Path) -> None:
    save(model(), tmp_path / "x", to="bittorch")
    (tmp_path / "x" / "generation_config.json").write_text('{"num_beams": 4}')
    convert(tmp_path / "x", tmp_path / "y.gguf", to="gguf-tq2_0")


@case("tokenizer-tokens")
def _(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    byte_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    Tokenizer.from_source(tmp_path)


def test_every_choice_has_a_case() -> None:
    assert set(CASES) == set(CHOICES)


@pytest.mark.parametrize("choice", [name for name, choice in CHOICES.items() if choice.outcome == "warned"])
def test_choices_are_warned_about(choice: str, tmp_path: Path) -> None:
    with pytest.warns(CheckpointWarning) as caught:
        CASES[choice](tmp_path)
    assert [warning.message.choice for warning in caught] == [choice]
    assert {warning.filename for warning in caught} == {__file__}  # where the user's code is


@pytest.mark.parametrize("choice", [name for name, choice in CHOICES.items() if choice.outcome == "refused"])
def test_choices_are_refused(choice: str, tmp_path: Path) -> None:
    with pytest.raises((FormatError, LossyError)) as caught:
        CASES[choice](tmp_path)
    assert caught.value.choice == choice


@pytest.mark.parametrize("choice", [name for name, choice in CHOICES.items() if choice.outcome == "noted"])
def test_choices_are_noted(choice: str, tmp_path: Path) -> None:
    """Without a warning."""
    with recorded() as made, warnings.catch_warnings():
        warnings.simplefilter("error")
        with recorded() as inside:
            CASES[choice](tmp_path)
    assert [noted.choice for noted in inside] == [] == made  # opening keeps its own list
    with open_checkpoint(next(path for path in (tmp_path / "x", tmp_path / "x.gguf") if path.exists())) as found:
        assert [noted.choice for noted in found.choices] == [choice]
        assert str(tmp_path) in str(found.choices[0])


def test_warned_choices_are_listed_too(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "bitnet", BITNET, "F16", dense_values(BITNET, "F16"))
    with pytest.warns(CheckpointWarning) as caught:
        found = open_checkpoint(tmp_path / "x.gguf")
    assert [made.choice for made in found.choices] == ["gguf-activation", "gguf-activation-bits"]
    assert found.choices[0] is caught[0].message
    with open_checkpoint(tmp_path / "x.gguf", override={"hidden_act": "silu", "activation_bits": 8}) as found:
        assert not found.choices


def test_warnings_survive_pickling() -> None:
    again = pickle.loads(pickle.dumps(CheckpointWarning("gguf-activation", "text")))
    assert (again.choice, str(again)) == ("gguf-activation", "text")


def test_names_are_checked() -> None:
    with pytest.raises(KeyError):
        warn("no such choice", "")
    with pytest.raises(KeyError):
        refusal("no such choice", "")


def test_no_warning_goes_past_the_list() -> None:
    """Readers and writers warn through `choices.warn` alone."""
    folder = Path(bittorch.__file__).parent / "models"
    sources = [*folder.glob("io/*.py"), *folder.glob("*token*.py"), folder / "vocabulary.py", folder / "save.py"]
    for path in sources:
        if path.name == "choices.py":
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Attribute) and ast.unparse(call) == "warnings.warn" for call in calls), path
