import copy
import errno
import json
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bittorch
from bittorch import (
    TernaryConv2d,
    TernaryConv2dInference,
    TernaryLinear,
    TernaryLinearInference,
    TernaryQuantConfig,
    export_for_inference,
)
from bittorch import load_ternary_inference_checkpoint as load
from bittorch import save_ternary_inference_checkpoint as save
from bittorch.utils import safetensors_file
from tests import helpers


class _Model(nn.Module):
    """Every granularity, int8 activations, plain layers, a buffer, a shared layer and a tied parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        super().__init__()
        kind = {"dtype": dtype, "device": device}
        self.embed = nn.Embedding(11, 8, **kind)
        self.first = TernaryLinear(8, 8, **kind)
        self.group = TernaryLinear(8, 8, config=TernaryQuantConfig(granularity="group", group_size=4), **kind)
        self.blocks = nn.Sequential(TernaryLinear(8, 6, bias=False, per_channel=False, **kind), nn.LayerNorm(6, **kind))
        self.int8 = TernaryLinear(6, 8, activation_bits=8, **kind)
        self.digits = TernaryLinear(6, 8, activation_bits=24, **kind)
        self.again = self.first
        self.head = nn.Linear(8, 11, **kind)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.ones(8, **kind))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.again(self.group(self.first(self.embed(tokens) + self.offset)))
        return self.head(self.int8(self.blocks(x)))


TOKENS = torch.arange(11)


def _trained(dtype: torch.dtype = torch.float32, seed: int = 1) -> _Model:
    torch.manual_seed(seed)
    return _Model(dtype).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path: Path) -> Path:
    save(export_for_inference(_trained()), path)
    return path


def _snapshot(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    types = {name: type(module).__name__ for name, module in model.named_modules(remove_duplicate=False)}
    return {name: (types[name.rpartition(".")[0]], t.clone()) for name, t in model.state_dict().items()}


def _assert_unchanged(model: nn.Module, before: dict[str, tuple[str, Tensor]]) -> None:
    after = _snapshot(model)
    assert after.keys() == before.keys()
    for name, (kind, tensor) in before.items():
        assert after[name][0] == kind
        assert torch.equal(after[name][1], tensor), name


TARGETS = {
    "trained": lambda: _trained(seed=2),
    "fresh": _Model,
    "meta": lambda: _Model(device="meta"),
    "packed": lambda: export_for_inference(_trained(seed=2)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("as_string", [False, True], ids=["path", "str"])
def test_round_trip_gives_the_same_bits(saved: Path, target: str, as_string: bool) -> None:
    model = TARGETS[target]()
    loaded = load(model, str(saved) if as_string else saved)
    assert loaded is model
    assert not any(module.training for module in loaded.modules())
    expected = export_for_inference(_trained())
    assert torch.equal(loaded(TOKENS), expected(TOKENS))
    for name, tensor in expected.state_dict().items():
        helpers.assert_same_bits(loaded.state_dict()[name], tensor)
    assert isinstance(loaded.first, TernaryLinearInference)
    assert (loaded.int8.activation_bits, loaded.digits.activation_bits) == (8, 24)
    assert (loaded.group.groups, loaded.blocks[0].groups, loaded.blocks[0].bias) == (2, 0, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
def test_round_trip_keeps_half_dtypes(path: Path, dtype: torch.dtype) -> None:
    packed = export_for_inference(_trained(dtype))
    save(packed, path)
    loaded = load(_Model(dtype), path)
    assert (loaded.first.bias.dtype, loaded.first.scale.dtype) == (dtype, torch.float32)
    assert torch.equal(loaded(TOKENS), packed(TOKENS))


def test_round_trip_of_a_root_layer(path: Path) -> None:
    layer = TernaryLinear(9, 4)
    save(export_for_inference(layer), path)
    loaded = load(TernaryLinear(9, 4), path)
    assert isinstance(loaded, TernaryLinearInference)
    assert torch.equal(loaded(torch.ones(9)), layer.eval()(torch.ones(9)))


def test_load_into_plain_linear_layers(path: Path) -> None:
    model = nn.Sequential(TernaryLinear(9, 4), nn.ReLU())
    save(export_for_inference(model), path)
    loaded = load(nn.Sequential(nn.Linear(9, 4), nn.ReLU()), path)
    assert torch.equal(loaded(torch.ones(9)), model.eval()(torch.ones(9)))


def test_shared_modules_and_tied_parameters_are_stored_once_and_tied_after_load(saved: Path) -> None:
    keys = set(load_file(saved))
    assert ("first.weight_packed" in keys) != ("again.weight_packed" in keys)
    assert ("embed.weight" in keys) != ("head.weight" in keys)
    for target in TARGETS.values():
        loaded = load(target(), saved)
        assert loaded.again is loaded.first
        assert loaded.head.weight is loaded.embed.weight


def test_file_holds_the_documented_keys_and_metadata(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    header = json.loads(metadata["bittorch"])
    assert header["version"] == 1
    assert header["layout"] == "2bit-lsb-first-rows"
    assert header["layers"]["int8"] == {
        "in_features": 6,
        "out_features": 8,
        "bias": True,
        "groups": 1,
        "activation_bits": 8,
    }
    assert set(header["layers"]) == {"first", "group", "blocks.0", "int8", "digits", "again"}
    assert header["aliases"]["head.weight"] == "embed.weight"
    tensors = load_file(saved)
    assert tensors["int8.weight_packed"].dtype == torch.uint8
    assert tensors["int8.weight_packed"].shape == (8, 2)
    assert tensors["int8.scale"].dtype == torch.float32
    assert "blocks.0.bias" not in tensors


def test_file_is_not_pickle(saved: Path) -> None:
    data = saved.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["format"] == "pt"
    assert b"torch" not in data.replace(b"bittorch", b"")


def test_loaded_model_outlives_its_file(saved: Path) -> None:
    """Replaced by another, then deleted: the tensors that were loaded stay what they were."""
    loaded = load(_Model(), saved)
    expected = loaded(TOKENS)
    save(export_for_inference(_trained(seed=2)), saved)
    assert torch.equal(loaded(TOKENS), expected)
    saved.unlink()
    assert torch.equal(loaded(TOKENS), expected)


def test_saving_twice_replaces_the_file(path: Path) -> None:
    save(export_for_inference(_trained(seed=1)), path)
    packed = export_for_inference(_trained(seed=2))
    save(packed, path)
    assert torch.equal(load(_Model(), path)(TOKENS), packed(TOKENS))
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_is_an_os_error(path: Path) -> None:
    """FIELD R12: by the limit of file sizes, which the system enforces on the way of a full disk."""
    save(export_for_inference(_trained()), path)
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save(export_for_inference(_trained(seed=2)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_replaced(path: Path, tmp_path: Path) -> None:  # FIELD R10
    real = tmp_path / "far" / "real.safetensors"
    real.parent.mkdir()
    path.symlink_to(real)
    save(export_for_inference(_trained()), path)
    assert path.is_symlink()
    assert real.is_file()


@pytest.mark.parametrize("step", ["save_file", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["OSError", "KeyboardInterrupt"])
def test_failed_save_leaves_the_old_file_and_nothing_else(
    saved: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    before = saved.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        if step == "save_file":
            Path(args[1]).write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors_file if step == "save_file" else os, step, fail)
    with pytest.raises(type(error)):
        save(export_for_inference(_trained(seed=2)), saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_file_has_the_permissions_of_an_ordinary_file(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save(export_for_inference(_trained()), path)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_save_into_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(export_for_inference(_trained()), tmp_path / "missing" / "model.safetensors")


def test_save_onto_a_folder_raises_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save(export_for_inference(_trained()), tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_save_refuses_models_that_are_not_packed(path: Path) -> None:
    with pytest.raises(ValueError, match=r"call export_for_inference\(model\) first"):
        save(_trained(), path)
    with pytest.raises(ValueError, match="it has no ternary layers"):
        save(nn.Linear(3, 3), path)
    with pytest.raises(ValueError, match="weight_packed is on the meta device"):
        save(nn.Sequential(TernaryLinearInference(4, 3, device="meta")), path)
    assert not path.exists()


# Damaged and foreign files


def _edit(path: Path, tensors: dict[str, Tensor | None] | None = None, **header: object) -> None:
    """Rewrites the file with other tensors (None removes one) and header fields."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["bittorch"])
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, tensor in (tensors or {}).items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    save_file(state, path, metadata={"format": "pt", "bittorch": json.dumps({**metadata, **header})})


def _layers(path: Path, name: str, **fields: object) -> dict[str, object]:
    with safe_open(path, framework="pt") as file:
        layers = json.loads(file.metadata()["bittorch"])["layers"]
    layers[name] = {**layers[name], **fields}
    return layers


def _assert_refused(path: Path, message: str) -> None:
    for target in ("trained", "packed"):
        model = TARGETS[target]()
        before = _snapshot(model)
        with pytest.raises(ValueError, match=message):
            load(model, path)
        _assert_unchanged(model, before)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for place in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            load(_Model(), place)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 1000, -100, -1])
def test_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    _assert_refused(saved, "not a whole safetensors file")


def test_file_of_another_kind_is_refused(saved: Path) -> None:
    for data in (b"not a checkpoint", b"PK\x03\x04" * 50, b"\xff" * 100):
        saved.write_bytes(data)
        _assert_refused(saved, "not a whole safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=str)
def test_foreign_safetensors_file_is_refused(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    _assert_refused(path, "not a bittorch checkpoint: it has no 'bittorch' metadata")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "{}", '{"version": 1}'], ids=repr)
def test_damaged_metadata_is_refused(saved: Path, text: str) -> None:
    save_file(load_file(saved), saved, metadata={"format": "pt", "bittorch": text})
    _assert_refused(saved, "damaged 'bittorch' metadata")


def test_newer_version_is_refused_with_both(saved: Path) -> None:
    _edit(saved, version=2)
    _assert_refused(saved, "format version 2, this bittorch reads version 1")


def test_other_layout_is_refused(saved: Path) -> None:
    _edit(saved, layout="msb-first")
    _assert_refused(saved, "weight layout 'msb-first', this bittorch reads '2bit-lsb-first-rows'")


@pytest.mark.parametrize(
    "fields",
    [
        {"in_features": 9},
        {"in_features": 7},
        {"in_features": 0},
        {"in_features": -4},
        {"in_features": "8"},
        {"in_features": 8.5},
        {"in_features": None},
        {"in_features": 2**70},
        {"in_features": 2**40},
        {"out_features": 7},
        {"out_features": -1},
        {"out_features": [8]},
        {"groups": 1},
        {"groups": 3},
        {"groups": -2},
        {"groups": 0},
        {"groups": 1.5},
        {"groups": "2"},
        {"activation_bits": 4},
        {"activation_bits": "8"},
        {"device": "cpu"},
        {"surprise": 1},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_header_that_contradicts_its_tensors_is_refused(saved: Path, fields: dict[str, object]) -> None:
    _edit(saved, layers=_layers(saved, "group", **fields))
    _assert_refused(saved, "group")


def test_header_that_forgets_the_bias_is_refused(saved: Path) -> None:
    _edit(saved, layers=_layers(saved, "group", bias=False))
    _assert_refused(saved, "bias")


def test_header_that_invents_a_bias_is_refused(saved: Path) -> None:
    _edit(saved, layers=_layers(saved, "blocks.0", bias=True))
    _assert_refused(saved, "describes layer 'blocks.0' but holds no tensor 'blocks.0.bias'")


@pytest.mark.parametrize("config", [None, [], "x", 3, {}], ids=repr)
def test_layer_without_a_configuration_is_refused(saved: Path, config: object) -> None:
    layers = _layers(saved, "group")
    _edit(saved, layers={**layers, "group": config})
    _assert_refused(saved, "group")


@pytest.mark.parametrize("name", ["group.weight_packed", "group.scale", "group.bias", "embed.weight", "offset"])
def test_missing_tensor_is_refused(saved: Path, name: str) -> None:
    _edit(saved, {name: None})
    _assert_refused(saved, name)


@pytest.mark.parametrize("name", ["extra", "group.extra", "blocks.0.bias", "blocks.1.extra", "nowhere.weight"])
def test_surplus_tensor_is_refused(saved: Path, name: str) -> None:
    _edit(saved, {name: torch.zeros(8)})
    _assert_refused(saved, name)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("group.weight_packed", torch.zeros(8, 2, dtype=torch.int8)),
        ("group.weight_packed", torch.zeros(8, 3, dtype=torch.uint8)),
        ("group.scale", torch.ones(8, 2).half()),
        ("group.scale", torch.ones(8)),
        ("group.bias", torch.zeros(7)),
        ("group.bias", torch.zeros(8, dtype=torch.int64)),
        ("head.bias", torch.zeros(3)),
        ("head.bias", torch.zeros(11, dtype=torch.int64)),
        ("offset", torch.zeros(9)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{helpers.dtype_id(value.dtype)} {tuple(value.shape)}",
)
def test_tensor_of_another_shape_or_dtype_is_refused(saved: Path, name: str, tensor: Tensor) -> None:
    _edit(saved, {name: tensor})
    _assert_refused(saved, ".*".join(name.split(".")))


def test_reserved_code_is_refused_with_row_and_column(saved: Path) -> None:
    packed = load_file(saved)["group.weight_packed"]
    packed[5, 1] |= 0b00001100
    _edit(saved, {"group.weight_packed": packed})
    _assert_refused(saved, "group.*reserved code 11 at row 5, column 5")


def test_wrong_padding_is_refused(saved: Path) -> None:
    packed = load_file(saved)["int8.weight_packed"]
    packed[2, 1] |= 0b01000000
    _edit(saved, {"int8.weight_packed": packed})
    _assert_refused(saved, "int8.*in_features=6, got 01 at row 2, column 7")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_scale_is_refused(saved: Path, value: float) -> None:
    _edit(saved, {"group.scale": torch.full((8, 2), value)})
    _assert_refused(saved, "group.*scale must be finite")


@pytest.mark.parametrize(
    "aliases",
    [{"head.weight": "nothing"}, {"head.weight": 3}, {"head.weight": ["embed.weight"]}, [1], "x", None, 3],
    ids=repr,
)
def test_bad_aliases_are_refused(saved: Path, aliases: object) -> None:
    _edit(saved, aliases=aliases)
    _assert_refused(saved, "head.weight|aliases|damaged|does not fit")


def test_layer_that_the_model_lacks_is_refused(saved: Path) -> None:
    layers = _layers(saved, "group")
    _edit(saved, {f"more.{key}": load_file(saved)[f"group.{key}"] for key in ("weight_packed", "scale", "bias")},
          layers={**layers, "more": layers["group"]})  # fmt: skip
    _assert_refused(saved, "packed layer 'more', which the model lacks")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: nn.Linear(8, 8), "the model lacks"),
        (lambda: nn.Sequential(nn.Linear(8, 8)), "the model lacks"),
    ],
    ids=["linear", "sequential"],
)
def test_model_of_another_architecture_is_refused(saved: Path, other: object, message: str) -> None:
    model = other()
    before = _snapshot(model)
    with pytest.raises(ValueError, match=message):
        load(model, saved)
    _assert_unchanged(model, before)


def test_model_with_another_size_or_kind_of_layer_is_refused(saved: Path) -> None:
    for attribute, layer, message in (
        ("group", TernaryLinear(8, 9), "'group' is a linear layer 8 -> 8, but the model has TernaryLinear 8 -> 9"),
        ("group", TernaryLinear(12, 8), "but the model has TernaryLinear 12 -> 8"),
        ("group", nn.LayerNorm(8), "but the model has LayerNorm"),
        ("head", nn.Linear(8, 12), "head"),
        ("extra", nn.Linear(8, 12), "missing .*extra"),
    ):
        model = _trained(seed=2)
        setattr(model, attribute, layer)
        before = _snapshot(model)
        with pytest.raises(ValueError, match=message):
            load(model, saved)
        _assert_unchanged(model, before)


def _assert_loads_or_leaves_alone(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    model = _trained(seed=2)
    before = _snapshot(model)
    try:
        load(model, path)
    except ValueError:
        _assert_unchanged(model, before)


_fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@_fuzz
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_any_damaged_header_byte_is_refused_or_harmless(saved: Path, where: float, byte: int) -> None:
    data = bytearray(_bytes_of_a_good_file(saved))
    size = 8 + int.from_bytes(data[:8], "little")
    data[int(where * size)] = byte
    _assert_loads_or_leaves_alone(saved, bytes(data))


@_fuzz
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(saved: Path, data: bytes) -> None:
    _assert_loads_or_leaves_alone(saved, data)


_GOOD: dict[str, bytes] = {}


def _bytes_of_a_good_file(path: Path) -> bytes:
    """The file as it was first: examples of one test write to the same path."""
    return _GOOD.setdefault(str(path), path.read_bytes())


def test_load_with_a_tied_target_of_another_structure_does_not_alias_packed_layers(path: Path) -> None:
    """Two equal but separate layers stay separate."""
    layer = TernaryLinear(8, 8)
    model = nn.Sequential(layer, copy.deepcopy(layer))
    save(export_for_inference(model), path)
    loaded = load(nn.Sequential(TernaryLinear(8, 8), TernaryLinear(8, 8)), path)
    assert loaded[0] is not loaded[1]
    assert torch.equal(loaded(torch.ones(8)), model.eval()(torch.ones(8)))


def test_a_loaded_model_does_not_change_with_its_file(saved: Path) -> None:
    model = load(_Model(), saved)
    before = model(TOKENS).clone()
    with open(saved, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert torch.equal(model(TOKENS), before)


def test_layers_that_share_codes_but_not_the_bias_stay_two(path: Path) -> None:
    packed = export_for_inference(nn.Sequential(TernaryLinear(8, 8), TernaryLinear(8, 8)))
    packed[1].weight_packed = packed[0].weight_packed
    save(packed, path)
    loaded = load(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), path)
    x = torch.randn(3, 8)
    assert loaded[0] is not loaded[1]
    assert loaded[0].weight_packed.data_ptr() != loaded[1].weight_packed.data_ptr()  # the model decides what is shared
    assert torch.equal(loaded(x), packed(x))


def test_layers_of_one_weight_keep_what_they_differ_in(path: Path) -> None:
    def made() -> nn.ModuleList:
        linear = [TernaryLinear(16, 16, False, activation_bits=bits) for bits in (None, 8, "ternary")]
        strided = [TernaryConv2d(4, 4, 3, stride, bias=False) for stride in (1, 2)]
        for layers in (linear, strided):
            for layer in layers[1:]:
                layer.weight = layers[0].weight
        return nn.ModuleList([*linear, *strided]).eval()

    packed = export_for_inference(made())
    save(packed, path)
    loaded = load(made(), path)
    for i, (layer, expected) in enumerate(zip(loaded, packed, strict=True)):
        x = helpers.randn(3, 16) if i < 3 else helpers.randn(2, 4, 7, 7)
        assert torch.equal(layer(x), expected(x))


def test_different_tensors_do_not_load_into_a_tied_parameter(path: Path) -> None:
    model = _trained()
    model.head.weight = nn.Parameter(model.head.weight + 1)
    save(export_for_inference(model), path)
    with pytest.raises(ValueError, match=r"embed.weight and head.weight differ, but the model has one parameter"):
        load(_Model(), path)


def test_a_tied_file_leaves_an_untied_model_untied(saved: Path) -> None:
    model = _Model()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    loaded = load(model, saved)
    assert loaded.head.weight.data_ptr() != loaded.embed.weight.data_ptr()
    assert torch.equal(loaded.head.weight, loaded.embed.weight)


def test_a_meta_buffer_that_the_file_lacks_is_an_error(saved: Path) -> None:
    model = _Model(device="meta")
    model.register_buffer("table", torch.ones(3, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="does not hold table, which is on the meta device"):
        load(model, saved)


def test_state_that_is_not_a_tensor_is_an_error(path: Path) -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    model = export_for_inference(nn.Sequential(TernaryLinear(8, 8), Extra()))
    with pytest.raises(ValueError, match=r"1\._extra_state is a dict; a checkpoint holds tensors only"):
        save(model, path)
    assert not list(path.parent.iterdir())


# Convolutions


class _ConvNet(nn.Module):
    """Every setting of a convolution that the header records, a shared one and a linear layer."""

    def __init__(self, plain: bool = False, device: str = "cpu") -> None:
        super().__init__()
        group = TernaryQuantConfig(granularity="group", group_size=12)

        def conv(*sizes: object, **arguments: object) -> nn.Conv2d:
            if plain:
                for name in ("config", "activation_bits", "per_channel"):
                    arguments.pop(name, None)
            return (nn.Conv2d if plain else TernaryConv2d)(*sizes, device=device, **arguments)

        self.first = conv(3, 8, 3, padding="same", per_channel=False)
        self.group = conv(8, 8, (3, 3), 1, 1, config=group, bias=False)
        self.down = conv(8, 12, (3, 2), (2, 1), (1, 0), (1, 2), 2, activation_bits=8)
        self.round = conv(12, 4, 3, padding=1, padding_mode="circular", activation_bits=24)
        self.again = self.group
        self.head = (nn.Linear if plain else TernaryLinear)(4, 3, device=device)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.group(self.first(x)))
        return self.head(self.round(self.down(x)).mean((2, 3)))


IMAGES = helpers.randn(2, 3, 9, 9)


@pytest.fixture
def saved_convs(path: Path) -> Path:
    torch.manual_seed(2)
    model = _ConvNet().eval()
    save(export_for_inference(model), path)
    torch.save(model(IMAGES), path.with_suffix(".expected"))
    return path


@pytest.mark.parametrize("target", ["trained", "packed", "plain", "meta"])
def test_round_trip_of_convolutions_gives_the_same_bits(saved_convs: Path, target: str) -> None:
    torch.manual_seed(5)
    model = _ConvNet(plain=target == "plain", device="meta" if target == "meta" else "cpu")
    loaded = load(export_for_inference(model) if target == "packed" else model, saved_convs)
    assert loaded is not None
    assert isinstance(loaded.down, TernaryConv2dInference)
    assert loaded.again is loaded.group
    assert torch.equal(loaded(IMAGES), torch.load(saved_convs.with_suffix(".expected")))


def test_header_describes_convolutions(saved_convs: Path) -> None:
    with safe_open(saved_convs, "pt") as file:
        header = json.loads(file.metadata()["bittorch"])
    assert header["version"] == 1
    assert header["layers"]["down"] == {
        "kind": "conv2d",
        "in_channels": 8,
        "out_channels": 12,
        "kernel_size": [3, 2],
        "stride": [2, 1],
        "padding": [1, 0],
        "dilation": [1, 2],
        "groups": 2,
        "padding_mode": "zeros",
        "scale_groups": 1,
        "bias": True,
        "activation_bits": 8,
    }
    assert "kind" not in header["layers"]["head"]
    assert header["aliases"]["again.weight_packed"] == "group.weight_packed"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "conv3d"},
        {"kind": None},
        {"in_channels": 16},
        {"in_channels": 0},
        {"in_channels": "8"},
        {"out_channels": 10},
        {"kernel_size": [3, 3]},
        {"kernel_size": [3]},
        {"kernel_size": []},
        {"kernel_size": None},
        {"kernel_size": [2**40, 2**40]},
        {"stride": [1, 1]},
        {"padding": "same"},
        {"padding": [-1, 0]},
        {"dilation": [1, 1]},
        {"groups": 0},
        {"groups": 3},
        {"groups": 1},
        {"padding_mode": "other"},
        {"scale_groups": 0},
        {"scale_groups": 5},
        {"bias": False},
        {"activation_bits": 9},
        {"surplus": 1},
    ],
    ids=str,
)
def test_header_that_contradicts_its_convolution_is_refused(saved_convs: Path, change: dict[str, object]) -> None:
    with safe_open(saved_convs, "pt") as file:
        layers = json.loads(file.metadata()["bittorch"])["layers"]
    layers["down"] |= change
    _edit(saved_convs, layers=layers)
    model = _ConvNet()
    before = _snapshot(model)
    with pytest.raises(ValueError, match=str(saved_convs)):
        load(model, saved_convs)
    assert _snapshot(model).keys() == before.keys()
    assert type(model.down) is TernaryConv2d


def test_model_with_another_convolution_is_refused(saved_convs: Path) -> None:
    model = _ConvNet()
    model.down = nn.Conv2d(8, 12, (3, 2), (2, 2), (1, 0), (1, 2), 2)
    with pytest.raises(ValueError, match=r"'down' is a TernaryConv2dInference\(.*stride=\(2, 1\).*stride=\(2, 2\)"):
        load(model, saved_convs)
    model.down = nn.Linear(8, 12)
    with pytest.raises(ValueError, match="but the model has Linear there"):
        load(model, saved_convs)


class _Rope(nn.Module):
    """A model with a table that is no part of its state dict, as the rotary embeddings of transformers."""

    def __init__(self, device: str = "cpu", base: float = 10.0) -> None:
        super().__init__()
        self.up = TernaryLinear(4, 4, device=device)
        frequencies = torch.arange(1, 5, device=device) / base
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("again", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x * self.frequencies) + self.again


def test_buffers_outside_the_state_dict_reach_a_meta_model_alone(path: Path) -> None:  # FIELD N13
    packed, x = export_for_inference(_Rope()), helpers.randn(3, 4)
    save(packed, path)
    assert torch.equal(load(_Rope("meta"), path)(x), packed(x))
    other = load(_Rope(base=20.0), path)  # a model that has its own keeps them
    assert torch.equal(other.frequencies, _Rope(base=20.0).frequencies)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["bittorch"])["buffers"] == ["again", "frequencies"]


@pytest.mark.parametrize("buffers", ["frequencies", ["nosuch"], [3], {"again": 1, "b": 2}], ids=str)
def test_bad_list_of_buffers_is_refused(path: Path, buffers: object) -> None:
    save(export_for_inference(_Rope()), path)
    _edit(path, buffers=buffers)
    with pytest.raises(ValueError, match="lists a buffer"):
        load(_Rope("meta"), path)


def test_buffer_that_does_not_fit_a_meta_model_is_refused(path: Path) -> None:
    save(export_for_inference(_Rope()), path)
    model = _Rope("meta")
    model.frequencies = torch.ones(5, device="meta")
    with pytest.raises(ValueError, match=r"frequencies must be \(5,\), got \(4,\)"):
        load(model, path)


@pytest.mark.slow
def test_transformers_model_on_meta(path: Path) -> None:  # FIELD N13
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=20, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    bittorch.quantize_(model)
    packed = export_for_inference(model)
    save(packed, path)
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config)
    tokens = torch.arange(12)[None]
    assert torch.equal(load(empty, path)(tokens).logits, packed(tokens).logits)


def test_names_are_those_of_the_inner_model(path: Path) -> None:  # FIELD N8
    model, x = nn.Sequential(TernaryLinear(9, 4), nn.ReLU()), helpers.randn(2, 9)
    packed = export_for_inference(model)
    save(torch.compile(packed, backend="eager"), path)
    assert torch.equal(load(nn.Sequential(nn.Linear(9, 4), nn.ReLU()), path)(x), packed(x))
    target = torch.compile(nn.Sequential(nn.Linear(9, 4), nn.ReLU()), backend="eager")
    assert load(target, path) is target
    assert torch.equal(target(x), packed(x))


def test_dtype_that_the_weight_had_is_kept(path: Path) -> None:  # FIELD N9
    save(export_for_inference(nn.Sequential(TernaryLinear(9, 4, bias=False).bfloat16())), path)
    loaded = load(nn.Sequential(nn.Linear(9, 4, bias=False)), path)
    assert loaded[0].weight.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match=r"the values of 0\.weight are read"):
        loaded[0].weight.sum()


def test_unknown_dtype_of_a_weight_is_refused(path: Path) -> None:
    save(export_for_inference(nn.Sequential(TernaryLinear(9, 4, bias=False).bfloat16())), path)
    _edit(path, layers=_layers(path, "0", weight_dtype="int8"))
    with pytest.raises(ValueError, match="weight_dtype must be one of float16, bfloat16, got 'int8'"):
        load(nn.Sequential(nn.Linear(9, 4, bias=False)), path)


def test_loading_in_inference_mode_gives_normal_tensors(saved: Path) -> None:  # FIELD T18
    with torch.inference_mode():
        loaded = load(_Model(), saved)
    assert not any(t.is_inference() for name, t in loaded.state_dict().items() if "packed" in name or "embed" in name)


def test_aliases_are_checked_before_they_are_copied(saved: Path) -> None:
    """FIELD R5: names that the model lacks cost no memory, and are not all in the message."""
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["bittorch"])
    state = load_file(saved)
    name = max(state, key=lambda key: state[key].nbytes)
    header["aliases"] |= {f"x{number}": name for number in range(30_000)}
    save_file(state, saved, metadata={"bittorch": json.dumps(header)})
    copies: list[int] = []
    clone = Tensor.clone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "clone", lambda self, **options: (copies.append(1), clone(self, **options))[1])
        with pytest.raises(ValueError, match=r"unexpected \['x0', .* and 29980 more") as error:
            load(_Model(), saved)
    assert len(copies) <= len(state)
    assert len(str(error.value)) < 1000


def test_a_bias_that_is_not_finite_is_refused(saved: Path) -> None:  # FIELD R18
    _edit(saved, {"first.bias": torch.full((8,), float("nan"))})
    with pytest.raises(ValueError, match=r"first\.bias holds NaN or Inf"):
        load(_Model(), saved)


class _Kinds(nn.Module):
    """Layers that checkpoints hold beside linear ones and 2-d convolutions."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.conv = nn.Conv1d(8, 4, 3, 2, padding="valid", groups=2, padding_mode="circular")
        self.up = nn.ConvTranspose2d(1, 2, (2, 3), stride, output_padding=1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(self.conv(self.table(tokens).transpose(1, 2)).unsqueeze(1))


def test_round_trip_of_other_kinds_gives_the_same_bits(path: Path) -> None:
    torch.manual_seed(4)
    model, tokens = _Kinds(), torch.randint(0, 16, (2, 9))
    config = bittorch.TernaryQuantConfig(activation_bits=8)
    bittorch.quantize_(model, config, filter_fn=("*", "table"))
    packed = bittorch.export_for_inference(model)
    save(packed, path)
    expected = packed(tokens)
    assert torch.equal(expected, model.eval()(tokens))
    for target in (_Kinds(), packed, model, _Kinds().to("meta")):
        assert torch.equal(load(target, path)(tokens), expected)
    with pytest.raises(
        ValueError, match=r"'up' is a TernaryConvTranspose2dInference\(.*stride=\(2, 2\).*stride=\(3, 3\)"
    ):
        load(_Kinds(3), path)
    wrong = _Kinds()
    wrong.conv = nn.Conv2d(8, 4, 3, 2, groups=2, padding_mode="circular")
    with pytest.raises(ValueError, match=r"'conv' is a TernaryConv1dInference\(.* but the model has Conv2d"):
        load(wrong, path)
