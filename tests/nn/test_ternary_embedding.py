"""`TernaryEmbedding` against torch's embedding of the quantised table."""

import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import bittorch
from bittorch import TernaryEmbedding, TernaryEmbeddingInference, TernaryQuantConfig
from tests import helpers

CONFIGS = {
    "channel": TernaryQuantConfig(),
    "tensor": TernaryQuantConfig(per_channel=False),
    "group": TernaryQuantConfig(granularity="group", group_size=4),
    "lsq": TernaryQuantConfig(method="lsq"),
    "clipped": TernaryQuantConfig(ste="clipped"),
    "ttq": TernaryQuantConfig(method="ttq"),
}
I = torch.tensor([[3, 0, 3], [9, 1, 2]])  # noqa: E741, of indices


def _layer(config: str = "channel", **arguments: object) -> TernaryEmbedding:
    torch.manual_seed(2)
    return TernaryEmbedding(10, 12, config=CONFIGS[config], **arguments)


def test_layer_is_an_embedding_with_its_signature() -> None:
    ours, theirs = (list(inspect.signature(cls).parameters) for cls in (TernaryEmbedding, nn.Embedding))
    assert issubclass(TernaryEmbedding, nn.Embedding)
    assert ours[:7] == theirs[:7]
    layer = _layer(quantize=False, padding_idx=1)
    dense = nn.Embedding(10, 12, padding_idx=1)
    dense.load_state_dict(layer.state_dict())
    assert torch.equal(layer(I), dense(I))
    with pytest.warns(UserWarning, match="quantize=False"):
        plain = bittorch.export_for_inference(layer)
    assert type(plain) is nn.Embedding
    assert torch.equal(plain(I), dense(I))
    assert plain.padding_idx == 1


@helpers.each("config", CONFIGS)
@helpers.each("backend", ["auto", "python"])
def test_rows_are_those_of_the_quantised_table(config: str, backend: str) -> None:
    layer = _layer(config, backend=backend)
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(I), functional.embedding(I, layer.dequantized_weight()))


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}], ids=["plain", "pad", "freq"]
)
@pytest.mark.parametrize("backend", ["auto", "python"])
def test_gradients_are_those_of_embedding(options: dict[str, object], backend: str) -> None:
    layer, dense = _layer(**options, backend=backend), nn.Embedding(10, 12, **options).double()
    g = helpers.randn(2, 3, 12)
    layer(I).backward(g)
    dense(I).backward(g.double())
    helpers.assert_near(layer.weight.grad, dense.weight.grad)


def test_a_learned_scale_has_the_gradient_of_its_rows() -> None:
    """LSQ (Esser et al. 2019): (round(v) - v) inside, +-1 outside, times a factor, for the rows that were read."""
    layer = _layer("lsq")
    layer(I).sum().backward()
    w, step = layer.weight.detach().double(), layer.weight_scale.detach().double()
    v = w / step[:, None]
    inner = torch.where(v.abs() <= 1, v.round() - v, v.sign()).sum(1)
    read = torch.bincount(I.flatten(), minlength=10)
    helpers.assert_near(layer.weight_scale.grad, inner * read / 12**0.5, 1e-4)


@helpers.each("config", [name for name in CONFIGS if name != "ttq"])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_train_eval_and_export_give_the_same_bits(config: str, dtype: torch.dtype) -> None:
    layer = _layer(config, dtype=dtype)
    packed = bittorch.export_for_inference(layer)
    trained = layer(I)
    assert isinstance(packed, TernaryEmbeddingInference)
    assert torch.equal(layer.eval()(I), trained)
    assert torch.equal(packed(I), trained)
    assert packed(I.int()).dtype == dtype


def test_a_warm_up_blends_the_table() -> None:
    layer = _layer()
    layer.quant_lambda = 0.25
    w = layer.weight.detach().double()
    helpers.assert_near(layer(I), w.lerp(layer.dequantized_weight().double(), 0.25)[I], 1e-6)


def test_float64_trains_by_the_python_backend_and_packs() -> None:
    layer = _layer(backend="python", dtype=torch.float64)
    assert layer(I).dtype == torch.float64
    with pytest.raises(TypeError, match="float64"):
        _layer(dtype=torch.float64)
    assert torch.equal(bittorch.export_for_inference(layer)(I), layer(I).float())


def test_a_padding_row_stays_zero_through_training() -> None:
    layer = _layer(padding_idx=3)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(I).square().sum().backward()
    optimizer.step()
    assert not layer(I)[0, 0].any()
    assert not bittorch.export_for_inference(layer)(I)[0, 2].any()


def test_max_norm_and_sparse_gradients_are_refused() -> None:
    for arguments in ({"max_norm": 1.0}, {"sparse": True}):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"{name}="):
            TernaryEmbedding(4, 4, **arguments)
        model = nn.Sequential(nn.Embedding(4, 4, **arguments), nn.Linear(4, 4))
        with pytest.raises(ValueError, match=f"cannot convert 0: {name}="):
            bittorch.quantize_(model, filter_fn=("*", "0"))
        assert type(model[1]) is nn.Linear
    with pytest.raises(TypeError, match=r"torch.nn.Embedding, got Linear"):
        TernaryEmbedding.from_embedding(nn.Linear(4, 4))
    with pytest.raises(IndexError, match="10"):
        _layer()(torch.tensor([10]))


def test_tied_heads_share_their_codes_whatever_their_activations() -> None:
    model = nn.Sequential(nn.Embedding(8, 12), nn.Linear(12, 8, bias=False))
    model[1].weight = model[0].weight
    bittorch.quantize_(model, TernaryQuantConfig(activation_bits=8), filter_fn=("*", "0"))
    assert model[0].weight is model[1].weight
    packed = bittorch.export_for_inference(model)
    assert packed[0].weight_packed is packed[1].weight_packed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(packed(I % 8), model.eval()(I % 8))
