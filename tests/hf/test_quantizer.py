"""Packed models in transformers: on the fly, saved and loaded, against bittorch's own route, bit for bit."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bittorch
from bittorch import TernaryLinearInference, TernaryQuantConfig
from bittorch.models import LanguageModel
from tests import helpers
from tests.hf import tiny

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import bittorch.hf  # noqa: E402

AutoModel, AutoCausal, TernaryConfig = (
    transformers.AutoModel,
    transformers.AutoModelForCausalLM,
    bittorch.hf.TernaryConfig,
)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.llama(), tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig())
    return tiny.saved(model, tmp_path_factory.mktemp("packed"))


ROUTES = [
    ({}, TernaryQuantConfig(method="twn"), None),
    (
        {"method": "absmean", "granularity": "tensor", "activation_bits": 8},
        TernaryQuantConfig(method="absmean", granularity="tensor", activation_bits=8),
        None,
    ),
    ({"group_size": 32}, TernaryQuantConfig(method="twn", group_size=32), None),
    ({"depth": 3, "group_size": 16, "activation_bits": 8}, TernaryQuantConfig(group_size=16, activation_bits=8), 3),
]


@pytest.mark.parametrize(("values", "config", "depth"), ROUTES, ids=lambda v: None)
def test_logits_of_every_route_are_equal(
    values: dict[str, object], config: TernaryQuantConfig, depth: int | None, dense: Path, tmp_path: Path
) -> None:
    expected = tiny.logits(tiny.own_route(tiny.llama(), config, depth))
    model = AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(**values))
    assert isinstance(model.get_submodule(tiny.Q_PROJ), TernaryLinearInference)
    assert type(model.lm_head) is nn.Linear
    helpers.assert_same_bits(tiny.logits(model), expected)
    tiny.saved(model, tmp_path / "packed")
    for opened in (
        AutoCausal.from_pretrained(tmp_path / "packed"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        helpers.assert_same_bits(tiny.logits(opened), expected)
    own = LanguageModel.from_pretrained(tmp_path / "packed", tokenizer=False)
    with torch.inference_mode():
        helpers.assert_same_bits(own(tiny.IDS), expected)
    own.save_pretrained(tmp_path / "own")
    helpers.assert_same_bits(tiny.logits(AutoCausal.from_pretrained(tmp_path / "own")), expected)


def test_biases_shards_and_ties(tmp_path: Path) -> None:
    qwen, tied = tiny.qwen2(), tiny.llama(tied=True)
    for name, model in (("qwen", qwen), ("tied", tied)):
        tiny.saved(model, tmp_path / name, max_shard_size="50KB")
        loaded = AutoCausal.from_pretrained(tmp_path / name, quantization_config=TernaryConfig())
        expected = tiny.logits(tiny.own_route(model, TernaryQuantConfig(method="twn")))
        helpers.assert_same_bits(tiny.logits(loaded), expected)
        tiny.saved(loaded, tmp_path / f"{name}-packed", max_shard_size="30KB")
        assert len(list((tmp_path / f"{name}-packed").glob("*.safetensors"))) > 1
        again = AutoCausal.from_pretrained(tmp_path / f"{name}-packed")
        helpers.assert_same_bits(tiny.logits(again), expected)
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == (name == "tied")


def test_halves_round_no_master_and_no_scale(tmp_path: Path) -> None:
    model = tiny.qwen2()
    tiny.saved(model, tmp_path / "dense")
    own = tiny.own_route(model, TernaryQuantConfig(method="twn")).get_submodule(tiny.Q_PROJ)
    loaded = AutoCausal.from_pretrained(tmp_path / "dense", quantization_config=TernaryConfig(), dtype=torch.bfloat16)
    tiny.saved(loaded, tmp_path / "packed")
    for found in (loaded, AutoCausal.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16)):
        layer = found.get_submodule(tiny.Q_PROJ)
        assert torch.equal(layer.weight_packed, own.weight_packed)
        helpers.assert_same_bits(layer.scale, own.scale)
        helpers.assert_same_bits(layer.bias, own.bias.bfloat16())
        assert (found.dtype, layer.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    rounded = bittorch.TernaryLinear.from_linear(model.get_submodule(tiny.Q_PROJ).bfloat16()).quantize_packed()
    assert not torch.equal(rounded[1], own.scale)  # or the test says nothing


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_device_map_and_disk(packed: Path, tmp_path: Path, offload_buffers: bool) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    expected = tiny.logits(AutoCausal.from_pretrained(packed, device_map="auto"))
    options = {"device_map": places, "offload_folder": tmp_path / "offload", "offload_buffers": offload_buffers}
    model = AutoCausal.from_pretrained(packed, **options)
    assert model.model.layers[1].mlp.up_proj.weight_packed.is_meta == offload_buffers
    helpers.assert_same_bits(tiny.logits(model), expected)
    damaged = _damaged(packed, tmp_path / "damaged", lambda t: t["model.layers.1.mlp.up_proj.weight_packed"].fill_(255))
    with pytest.raises(ValueError, match=r"layer 'model.layers.1.mlp.up_proj': .*reserved code 11"):
        AutoCausal.from_pretrained(damaged, **options)


def test_generation_with_a_static_cache(packed: Path) -> None:
    model = AutoCausal.from_pretrained(packed)
    options = {"max_new_tokens": 5, "do_sample": False, "disable_compile": True}
    static = model.generate(tiny.IDS[:1], cache_implementation="static", **options)
    assert torch.equal(static, model.generate(tiny.IDS[:1], **options))
    assert static.shape == (1, tiny.IDS.shape[1] + 5)


@pytest.mark.slow
def test_generation_with_a_compiled_static_cache(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled, compile_ = AutoCausal.from_pretrained(packed), [], torch.compile

    def compile_and_note(*args: object, **options: object) -> object:
        compiled.append(options)
        return compile_(*args, **options)

    monkeypatch.setattr(torch, "compile", compile_and_note)
    how = transformers.CompileConfig(backend="eager", mode=None, fullgraph=True)  # one graph, or an error
    how._compile_all_devices = True  # on a CPU transformers compiles for tests alone
    options = {"max_new_tokens": 5, "do_sample": False}
    static = model.generate(tiny.IDS[:1], cache_implementation="static", compile_config=how, **options)
    assert [one["fullgraph"] for one in compiled] == [True]
    assert torch.equal(static, model.generate(tiny.IDS[:1], **options))


def test_gpt2_with_transposed_layers(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=96, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).eval()
    tiny.saved(model, tmp_path / "dense")
    loaded = AutoCausal.from_pretrained(tmp_path / "dense", quantization_config=TernaryConfig())
    for name in ("c_attn", "c_proj"):  # plain torch: the transposed weight in the dense layer
        conv, layer = (m.transformer.h[0].attn.get_submodule(name) for m in (model, loaded))
        linear = nn.Linear(conv.nx, conv.nf)
        linear.weight, linear.bias = nn.Parameter(conv.weight.T.contiguous()), conv.bias
        twin = bittorch.TernaryLinear.from_linear(linear, TernaryQuantConfig(method="twn")).eval()
        helpers.assert_same_bits(layer(helpers.randn(3, conv.nx)), twin(helpers.randn(3, conv.nx)).detach())
    expected = tiny.logits(loaded)
    tiny.saved(loaded, tmp_path / "packed")
    packed = AutoCausal.from_pretrained(tmp_path / "packed")
    helpers.assert_same_bits(tiny.logits(packed), expected)
    for i, each in enumerate((loaded, packed)):  # dense again, transposed as the model has it
        tiny.saved(each.dequantize(), tmp_path / str(i))
        dense = AutoCausal.from_pretrained(tmp_path / str(i))
        assert torch.equal(dense.transformer.h[0].attn.c_proj.weight, layer.dequantized_weight().T)
        helpers.assert_near(tiny.logits(dense), expected.double(), 1e-5)


def test_a_configuration_is_for_several_models(dense: Path, tmp_path: Path) -> None:
    config = TernaryConfig(depth=2)
    made = AutoCausal.from_pretrained(dense, quantization_config=config)
    assert config.to_dict() == TernaryConfig(depth=2).to_dict()
    assert made.config.quantization_config.modules_to_not_convert == ["lm_head"]
    sizes = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    bert = transformers.BertForSequenceClassification(sizes)
    other = type(bert).from_pretrained(tiny.saved(bert, tmp_path), quantization_config=config)  # it has no lm_head
    assert type(other.classifier) is nn.Linear  # the last module, with a bias
    assert isinstance(other.bert.pooler.dense, TernaryLinearInference)


def test_the_base_alone_and_a_head_of_its_own(dense: Path, packed: Path) -> None:
    whole = AutoCausal.from_pretrained(packed)
    base = AutoModel.from_pretrained(packed)
    with torch.inference_mode():
        expected = whole.model(tiny.IDS).last_hidden_state
        helpers.assert_same_bits(base(tiny.IDS).last_hidden_state, expected)
    base.save_pretrained(dense.parent / "base")
    with torch.inference_mode():
        helpers.assert_same_bits(AutoModel.from_pretrained(dense.parent / "base")(tiny.IDS)[0], expected)
    whole = AutoCausal.from_pretrained(dense.parent / "base")  # finds no head, as ever
    with torch.inference_mode():
        helpers.assert_same_bits(whole.model(tiny.IDS).last_hidden_state, expected)


def test_modules_by_name(dense: Path, tmp_path: Path) -> None:
    def ternary(**names: object) -> set[str]:
        model = AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(**names))
        tiny.saved(model, tmp_path / "packed")
        again = AutoCausal.from_pretrained(tmp_path / "packed")
        found = [
            {n for n, m in each.named_modules() if isinstance(m, TernaryLinearInference)} for each in (model, again)
        ]
        assert found[0] == found[1]
        return found[0]

    assert ternary(modules_to_convert="lm_head", modules_to_not_convert=[]) == {"lm_head"}
    layer = {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert ternary(modules_to_convert=["model.layers.1.mlp"]) == layer
    assert ternary(modules_to_convert=["mlp.up_proj", "gate_proj"], modules_to_not_convert=["model.layers.0"]) == {
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.gate_proj",
    }


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"version": 2}, ValueError, "has version 2, and this bittorch reads version 1; update bittorch"),
        ({"method": "lsq"}, ValueError, "'lsq' learns its scale: load the model dense"),
        ({"activation_bits": "ternary"}, ValueError, "a TernaryConfig has no activation_bits='ternary'"),
        ({"depth": 7}, ValueError, "depth must be from 1 to 6"),
        ({"depth": 2, "method": "twn"}, ValueError, "depth=2 is instead of a method"),
        ({"depht": 2}, TypeError, "TernaryConfig has no argument depht"),
        ({"group_size": 6}, ValueError, "group_size must be a positive multiple of 4"),
        ({"modules_to_convert": [3]}, TypeError, "must be names of modules"),
        ({"modules_to_convert": 5}, TypeError, "must be names of modules, got 5"),
        ({"modules_to_not_convert": "["}, ValueError, "which is no regular expression"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_configurations(values: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        TernaryConfig(**values)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"group_size": 48}, "cannot convert model.layers.0.mlp.down_proj: group_size must divide in_features"),
        ({"modules_to_convert": ["q_prj"]}, "modules_to_convert has 'q_prj', which names nothing.* there is .*q_proj"),
        ({"modules_to_not_convert": ["heads"]}, "modules_to_not_convert has 'heads'"),
        ({"modules_to_convert": ["lm_head"]}, "leaves every linear layer"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_configurations_that_do_not_fit_the_model(values: dict[str, object], text: str, dense: Path) -> None:
    with pytest.raises(ValueError, match=text):
        AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(**values))


def test_a_weight_that_is_not_finite(tmp_path: Path) -> None:
    model = tiny.llama()
    model.get_submodule(tiny.Q_PROJ).weight.data[3, 2] = float("nan")
    tiny.saved(model, tmp_path)
    with pytest.raises(ValueError, match=f"cannot convert {tiny.Q_PROJ}: .*must be finite.* row 3"):
        AutoCausal.from_pretrained(tmp_path, quantization_config=TernaryConfig())


def _damaged(folder: Path, to: Path, change: object) -> Path:
    """A copy of a folder of one file, with other tensors."""
    to.mkdir()
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    header = _metadata(folder)
    save_file(tensors, to / "model.safetensors", header)
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


def _metadata(folder: Path) -> dict[str, str]:
    data = (folder / "model.safetensors").read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t[f"{UP}.weight_packed"].__setitem__((0, 0), 255), f"layer '{UP}': .*reserved code 11"),
        (lambda t: t[f"{UP}.scale"].__setitem__(0, float("inf")), f"layer '{UP}': scale must be finite"),
        (lambda t: t.pop(f"{UP}.scale"), f"describes layer '{UP}', but holds no tensor {UP}.scale"),
        (lambda t: t.pop(f"{UP}.weight_packed"), f"holds no tensor {UP}.weight_packed"),
        (
            lambda t: t.update({f"{UP}.weight_packed": t[f"{UP}.weight_packed"][1:].clone()}),
            rf"{UP}.weight_packed must be U8 \(128, 16\) for in_features=64.* got U8 \(127, 16\)",
        ),
        (lambda t: t.update({f"{UP}.scale": t[f"{UP}.scale"].half()}), r"scale must be F32 \(128,\).* got F16"),
        (lambda t: t.update({"model.x.weight_packed": t[f"{UP}.weight_packed"].clone()}), "describe no such layer"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_damaged_files_are_refused(change: object, text: str, packed: Path, tmp_path: Path) -> None:
    folder = _damaged(packed, tmp_path / "damaged", change)
    with pytest.raises(ValueError, match=text):
        AutoCausal.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_files_without_their_metadata_are_refused(packed: Path, tmp_path: Path) -> None:
    folder = _damaged(packed, tmp_path / "bare", lambda t: None)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no 'bittorch' metadata"):
        AutoCausal.from_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"]["version"] = 9
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="has version 9, and this bittorch reads version 1"):
        AutoCausal.from_pretrained(folder)
    with pytest.raises(ValueError, match="in the metadata of safetensors files, got a state dict"):
        transformers.LlamaForCausalLM.from_pretrained(
            None, config=transformers.AutoConfig.from_pretrained(packed), state_dict={"a": torch.ones(1)}
        )


def test_models_packed_by_bittorch_are_saved_by_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bittorch.utils import transformers_config

    model = tiny.llama(tied=True)
    monkeypatch.setattr(transformers_config, "_saveable", [])
    late = bittorch.quantize_model(model, depth=2)  # the head too, which is then tied no more
    with pytest.raises(NotImplementedError, match=r"bittorch.hf.attach\(model\)"):
        late.save_pretrained(tmp_path)
    bittorch.hf.attach(late)
    monkeypatch.undo()
    early = bittorch.quantize_model(model, depth=2)
    for i, packed in enumerate((late, early, copy.deepcopy(early))):
        expected = tiny.logits(packed)
        tiny.saved(packed, tmp_path / str(i))
        again = AutoCausal.from_pretrained(tmp_path / str(i))
        assert isinstance(again.lm_head, TernaryLinearInference)
        helpers.assert_same_bits(tiny.logits(again), expected)
    with pytest.raises(ValueError, match="no model of transformers with packed layers"):
        bittorch.hf.attach(model)


def test_masters_load_as_layers_to_train(tmp_path: Path) -> None:
    for config in (TernaryQuantConfig(method="lsq", group_size=16), TernaryQuantConfig(activation_bits=8)):
        model = tiny.llama()
        bittorch.quantize_(model, config, skip="lm_head")
        layer = model.get_submodule(tiny.Q_PROJ)
        model(tiny.IDS, labels=tiny.IDS).loss.backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.01 * parameter.grad
        tiny.saved(model.eval(), tmp_path / "masters")
        again = AutoCausal.from_pretrained(tmp_path / "masters")
        assert isinstance(again.get_submodule(tiny.Q_PROJ), bittorch.TernaryLinear)
        helpers.assert_same_bits(tiny.logits(again), tiny.logits(model))
        tiny.saved(again, tmp_path / "again")
        with torch.inference_mode():
            opened = LanguageModel.from_pretrained(tmp_path / "again", tokenizer=False)(tiny.IDS)
        helpers.assert_same_bits(opened, tiny.logits(model))
    base = AutoModel.from_pretrained(tmp_path / "masters")
    with torch.inference_mode():
        helpers.assert_same_bits(base(tiny.IDS)[0], again.model(tiny.IDS)[0])
    tiny.saved(tiny.llama(), tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((tmp_path / "masters" / "config.json").read_text())
    with pytest.raises(ValueError, match="its weight is not that of the ternary layer"):
        AutoCausal.from_pretrained(tmp_path / "other")


class OfItself(transformers.LlamaForCausalLM):
    """A model that makes its layers ternary itself."""

    config_of_layers = TernaryQuantConfig(method="twn")

    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__(config)
        bittorch.quantize_(self, self.config_of_layers, skip="lm_head")


def test_models_that_make_their_layers_ternary_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OfItself(tiny.llama().config).eval()
    tiny.saved(model, tmp_path)
    again = OfItself.from_pretrained(tmp_path)
    helpers.assert_same_bits(tiny.logits(again), tiny.logits(model))
    monkeypatch.setattr(OfItself, "config_of_layers", TernaryQuantConfig(method="absmean"))
    with pytest.raises(ValueError, match=r"but the model makes it with TernaryQuantConfig.*absmean"):
        OfItself.from_pretrained(tmp_path)


def test_masters_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    model = tiny.llama()
    bittorch.quantize_(model, TernaryQuantConfig(method="lsq"), skip="lm_head")
    tiny.saved(model, tmp_path / "masters")
    for key in ("weight", "weight_scale"):
        folder = _damaged(tmp_path / "masters", tmp_path / key, lambda t, key=key: t.pop(f"{UP}.{key}"))
        with pytest.raises(ValueError, match=f"the files hold no {UP}.{key}"):
            AutoCausal.from_pretrained(folder)
    values = json.loads((tmp_path / "masters" / "config.json").read_text())
    record = values["quantization_config"]
    for change, text in (
        ({"stored": "planes"}, "has stored 'planes', and only 'masters' is known"),
        ({"unnamed": 2}, "masters of 2 ternary layers whose names it does not record"),
        ({"layers": [{**record["layers"][0], "name": f"{tiny.Q_PROJ}.base_layer"}]}, "which LlamaForCausalLM lacks"),
        ({"layers": [{**record["layers"][0], "name": "model.norm"}]}, "but the model has LlamaRMSNorm"),
        ({"configs": []}, "quantization_config of bittorch is damaged"),
        (
            {
                "configs": [*record["configs"], TernaryQuantConfig().to_dict()],
                "layers": [*record["layers"], {**record["layers"][0], "config": 1}],
            },
            f"two configurations of {tiny.Q_PROJ}",
        ),
    ):
        values["quantization_config"] = {**record, **change}
        (tmp_path / "masters" / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=text):
            AutoCausal.from_pretrained(tmp_path / "masters")


def test_folders_that_only_bittorch_computes_are_refused(packed: Path, tmp_path: Path) -> None:
    def blocks(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight_blocks"] = torch.zeros(96, 34, dtype=torch.uint8)

    folder = _damaged(packed, tmp_path / "blocks", blocks)
    with pytest.raises(ValueError, match=r"weight_blocks, in blocks that transformers cannot look up"):
        AutoCausal.from_pretrained(folder)
    values = json.loads((packed / "config.json").read_text())
    values["bittorch"] = {"hadamard": {"version": 1}}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="says 'hadamard' under 'bittorch', which transformers does not compute"):
        AutoCausal.from_pretrained(folder)


def test_a_model_goes_back_to_dense(dense: Path, packed: Path, tmp_path: Path) -> None:
    model = AutoCausal.from_pretrained(packed)
    expected = model.get_submodule(tiny.Q_PROJ).dequantized_weight()
    plain = model.dequantize()
    assert type(plain.get_submodule(tiny.Q_PROJ)) is nn.Linear
    helpers.assert_same_bits(plain.get_submodule(tiny.Q_PROJ).weight.detach(), expected)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    tiny.saved(plain, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_packed_beside_masters_is_refused(dense: Path, tmp_path: Path) -> None:
    model = AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(modules_to_convert=["mlp"]))
    bittorch.quantize_(model, filter_fn="*.q_proj")
    with pytest.raises(ValueError, match=r"q_proj is a TernaryLinear in training, but .* is packed"):
        model.save_pretrained(tmp_path)


@pytest.mark.slow
def test_without_the_import_a_folder_loads_wrong_with_a_warning(packed: Path) -> None:
    """The trap that the docs name; it is transformers' to close."""
    code = f"""
import transformers
model = transformers.AutoModelForCausalLM.from_pretrained({str(packed)!r})
print(type(model.get_submodule({tiny.Q_PROJ!r})).__name__)
"""
    done = helpers.run_python(code)
    assert done.stdout.split() == ["Linear"]
    assert "Unknown quantization type, got bittorch" in done.stderr
