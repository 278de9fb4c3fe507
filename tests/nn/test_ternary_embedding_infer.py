import copy
import pickle

import pytest
import torch
from torch import nn

from bittorch import (
    TernaryEmbeddingInference,
    TernaryLinearInference,
    TernaryQuantConfig,
    load_ternary_inference_checkpoint,
    ops,
    save_ternary_inference_checkpoint,
)
from tests import helpers

CONFIGS = {
    "tensor": TernaryQuantConfig(granularity="tensor"),
    "channel": TernaryQuantConfig(method="absmean"),
    "group": TernaryQuantConfig(group_size=8),
}


def _dense(dtype: torch.dtype = torch.float32, **arguments: object) -> nn.Embedding:
    return nn.Embedding(7, 24, _weight=helpers.randn(7, 24, dtype=dtype), **arguments)


class _Language(nn.Module):
    """Embedding, something in between, tied head."""

    def __init__(self, depth: int | None = None) -> None:
        super().__init__()
        self.embed = TernaryEmbeddingInference.from_embedding(_dense(), depth=depth)
        self.head = self.embed.tied_head()

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(indices) + 1)


def _assert_tied(model: nn.Module) -> None:
    for name in ("weight_packed", "scale"):
        one, other = getattr(model.embed, name), getattr(model.head, name)
        assert one is other
    assert len(list(model.buffers())) == 2


INDICES = torch.tensor([[6, 0], [3, 3]])


@pytest.mark.parametrize("granularity", CONFIGS)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_layer_looks_up_the_quantised_table(granularity: str, dtype: torch.dtype) -> None:
    dense, config = _dense(dtype), CONFIGS[granularity]
    layer = TernaryEmbeddingInference.from_embedding(dense, config)
    packed, scale = ops.ternary_quantize(dense.weight.detach(), *config.op_args())
    assert not list(layer.parameters())
    assert list(layer.state_dict()) == ["weight_packed", "scale"]
    y = layer(INDICES)
    assert y.dtype == layer.weight.dtype == dtype
    assert torch.equal(y, ops.ternary_unpack(packed, scale, 24, dtype)[INDICES])
    assert torch.equal(layer.dequantized_weight(dtype)[INDICES], y)


@pytest.mark.parametrize("depth", [1, 4])
def test_planes_come_near_the_dense_table(depth: int) -> None:
    dense = _dense()
    layer = TernaryEmbeddingInference.from_embedding(dense, CONFIGS["group"], depth=depth)
    assert layer.weight_packed.shape == (7 * depth, 6)
    step = dense.weight.detach().unflatten(1, (3, 8)).abs().amax(2) / ((3**depth - 1) // 2)
    error = (layer(INDICES) - dense(INDICES)).detach().unflatten(-1, (3, 8)).abs().amax(-1)
    assert (error <= 0.5001 * step[INDICES]).all()
    assert torch.equal(layer(INDICES), layer.dequantized_weight()[INDICES])


def test_from_packed_shares_the_tensors() -> None:
    packed, scale = helpers.pack(helpers.random_codes(6, 9)), torch.tensor([0.5])
    layer = TernaryEmbeddingInference.from_packed(packed, scale, 9, dtype=torch.float16)
    assert (layer.weight_packed.data_ptr(), layer.scale.data_ptr()) == (packed.data_ptr(), scale.data_ptr())
    assert layer(torch.tensor([5])).dtype == torch.float16
    with pytest.raises(RuntimeError, match="weight_packed holds the reserved code 11"):
        TernaryEmbeddingInference.from_packed(packed | 3, scale, 9)
    with pytest.raises(RuntimeError, match=r"size mismatch for scale"):
        TernaryEmbeddingInference.from_packed(packed, torch.ones(5), 9)


def test_casts_change_the_result_alone() -> None:
    layer = TernaryEmbeddingInference.from_embedding(_dense())
    before = copy.deepcopy(layer.state_dict())
    y = layer.half()(INDICES)
    assert y.dtype == layer.weight.dtype == torch.float16
    for name, tensor in layer.state_dict().items():
        helpers.assert_same_bits(tensor, before[name])


def test_head_multiplies_the_same_rows() -> None:
    for depth in (None, 3):
        model, x = _Language(depth), helpers.randn(2, 24)
        assert type(model.head) is TernaryLinearInference
        _assert_tied(model)
        helpers.assert_near(model.head(x), x.double() @ model.embed.dequantized_weight(torch.float64).t())
    head = model.embed.tied_head(activation_bits=8)
    assert (head.activation_bits, head.depth) == (8, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to_empty(device="cpu"),
        lambda model: model.to("meta"),
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: (model.load_state_dict(_Language().state_dict()), model)[1],
        lambda model: (model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True), model)[1],
    ],
    ids=["half", "bfloat16", "to_empty", "meta", "deepcopy", "pickle", "load", "load assign"],
)
@pytest.mark.parametrize("head_first", [False, True], ids=["embedding first", "head first"])
def test_head_stays_tied(change: object, head_first: bool) -> None:
    model = _Language()
    if head_first:
        model._modules = dict(reversed(model._modules.items()))
    model = change(model)
    _assert_tied(model)
    assert list(model.state_dict()).count("head.weight_packed") == 1
    model.embed.scale = torch.full_like(model.embed.scale, 2.0)
    _assert_tied(model)


def test_tied_copy_is_apart_from_its_original() -> None:
    model = _Language()
    twin = copy.deepcopy(model)
    twin.embed.scale.zero_()
    assert not model.embed.scale.eq(0).any()
    assert twin(INDICES).eq(0).all()


def test_checkpoint_keeps_one_table(tmp_path: object) -> None:
    model, path = _Language(depth=2), tmp_path / "tied.safetensors"
    save_ternary_inference_checkpoint(model, path)
    assert path.stat().st_size < 2 * sum(t.nbytes for t in model.buffers()) + 2000
    dense = nn.Module()
    dense.embed, dense.head = _dense(), nn.Linear(24, 7, bias=False)
    loaded = load_ternary_inference_checkpoint(dense, path)
    _assert_tied(loaded)
    assert torch.equal(loaded.head(loaded.embed(INDICES) + 1), model(INDICES))
    wrong = nn.Module()
    wrong.embed, wrong.head = nn.Embedding(8, 24), nn.Linear(24, 7, bias=False)
    with pytest.raises(ValueError, match="'embed' is an embedding 7 x 24, but the model has Embedding 8 x 24"):
        load_ternary_inference_checkpoint(wrong, path)


def test_compiled_and_exported_models_give_the_same_bits() -> None:
    model = _Language(depth=2).eval()
    y = model(INDICES)
    assert torch.equal(torch.export.export(model, (INDICES,)).module()(INDICES), y)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(INDICES), y)
    assert torch.equal(torch.fx.symbolic_trace(model)(INDICES), y)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": 5}, ValueError, "groups=5 do not cut embedding_dim=24 into equal multiples of 4"),
        ({"groups": 0, "depth": 2}, ValueError, "groups=0 is one scale for all rows, but each of depth=2 planes"),
        ({"depth": 7}, ValueError, "depth must be from 1 to 6, got 7"),
        ({"dtype": torch.int8}, TypeError, "must be float32, float16 or bfloat16, got torch.int8"),
    ],
    ids=["groups", "one scale", "depth", "dtype"],
)
def test_layer_refuses(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TernaryEmbeddingInference(7, 24, **arguments)


@pytest.mark.parametrize(
    ("dense", "arguments", "message"),
    [
        (_dense(max_norm=1.0), {}, "max_norm=1.0 scales rows"),
        (_dense().to("meta"), {}, "on the meta device"),
        (_dense(), {"config": TernaryQuantConfig(method="lsq")}, "method 'lsq' learns its scale in training"),
        (
            _dense(),
            {"config": TernaryQuantConfig(method="twn"), "depth": 2},
            "method='twn', scale='ls', .* says nothing",
        ),
        (_dense(), {"config": TernaryQuantConfig(group_size=16)}, "group_size=16 and in_features=24"),
        (nn.Embedding(2, 4, _weight=torch.full((2, 4), torch.nan)), {}, "w must be finite, got 8 NaN or Inf"),
    ],
    ids=["max_norm", "meta", "learned", "method with depth", "groups", "nan"],
)
def test_from_embedding_refuses(dense: nn.Embedding, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernaryEmbeddingInference.from_embedding(dense, **arguments)


def test_an_index_out_of_range_is_named() -> None:
    with pytest.raises(IndexError, match="from 0 to 6, for 7 rows, got 7 at position 1"):
        _Language()(torch.tensor([0, 7]))
