"""torch's encoder with ternary layers, and places that lose one."""

import io
import warnings

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryLinear
from bittorch.nn import call_ternary_layers
from tests import helpers


def _encoder(activation: str = "relu") -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, activation=activation, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def _mask(x: Tensor) -> Tensor:
    lengths = torch.tensor([5, 3, 1])
    return torch.arange(x.shape[1])[None] >= lengths[:, None]


def _as_trained(encoder: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """What the encoder computes with gradients, where torch never takes the fast path."""
    return encoder(x, src_key_padding_mask=mask).detach()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.filterwarnings("ignore:only .* of the weights")
def test_encoder_runs_as_trained_everywhere(activation: str, padded: bool) -> None:  # FIELD T9, FIELD N4
    model, x = _encoder(activation), helpers.randn(3, 5, 32)
    mask = _mask(x) if padded else None
    bittorch.quantize_(model)
    assert torch.backends.mha.get_fastpath_enabled()
    expected = _as_trained(model, x, mask)
    packed = bittorch.export_for_inference(model)
    pickled = io.BytesIO()
    torch.save(model, pickled)
    pickled.seek(0)
    fresh = _encoder(activation)
    bittorch.quantize_(fresh)
    fresh.load_state_dict(model.state_dict())
    with torch.inference_mode():
        for one in (model.eval(), packed, torch.load(pickled, weights_only=False).eval(), fresh.eval()):
            y = one(x, src_key_padding_mask=mask)
            kept = slice(None) if mask is None else ~mask
            assert helpers.relative_l2(y[kept], expected[kept]) <= 1e-6  # dense weights are over 0.1 off
            if one is not packed:
                assert torch.equal(y, packed(x, src_key_padding_mask=mask))


@pytest.mark.filterwarnings("ignore:only .* of the weights")
def test_padded_batches_of_an_encoder_whose_first_layer_stays_dense() -> None:  # FIELD T9
    model, x = _encoder(), helpers.randn(3, 5, 32)
    bittorch.quantize_(model, filter_fn="layers.1.*")
    expected = _as_trained(model, x, _mask(x))
    with torch.inference_mode():
        y = model.eval()(x, src_key_padding_mask=_mask(x))
    assert helpers.relative_l2(y[~_mask(x)], expected[~_mask(x)]) <= 1e-6


def test_a_layer_set_by_hand_is_called() -> None:  # FIELD N4
    encoder, x = _encoder().layers[0], helpers.randn(3, 5, 32)
    encoder.linear1, encoder.linear2 = TernaryLinear(32, 64), TernaryLinear(64, 32)
    expected = _as_trained(encoder, x, None)
    with torch.inference_mode():
        assert helpers.relative_l2(encoder.eval()(x), expected) <= 1e-6
        assert torch.equal(bittorch.export_for_inference(encoder)(x), encoder(x))


def test_layers_that_came_another_way_are_called_after_the_call() -> None:  # FIELD N4
    encoder, x = _encoder().layers[0], helpers.randn(3, 5, 32)
    encoder._modules["linear1"] = TernaryLinear(32, 64)
    expected = _as_trained(encoder, x, None)
    with torch.inference_mode():
        assert helpers.relative_l2(encoder.eval()(x), expected) > 0.05
        call_ternary_layers(encoder)
        assert helpers.relative_l2(encoder(x), expected) <= 1e-6


@pytest.mark.filterwarnings("ignore:only .* of the weights")
def test_checkpoint_into_a_dense_encoder(tmp_path: object) -> None:  # FIELD N4
    model, x = _encoder(), helpers.randn(3, 5, 32)
    bittorch.quantize_(model)
    packed = bittorch.export_for_inference(model)
    bittorch.save_ternary_inference_checkpoint(packed, tmp_path / "m.safetensors")
    loaded = bittorch.load_ternary_inference_checkpoint(_encoder(), tmp_path / "m.safetensors")
    with torch.inference_mode():
        for mask in (None, _mask(x)):
            actual, expected = (one(x, src_key_padding_mask=mask) for one in (loaded, packed))
            assert torch.equal(actual, expected)


def test_encoder_without_ternary_layers_keeps_its_fast_path() -> None:
    encoder = _encoder()
    call_ternary_layers(encoder)
    assert encoder.layers[0].activation_relu_or_gelu == 1
    assert encoder.use_nested_tensor


def test_a_ternary_layer_that_becomes_dense_warns() -> None:  # FIELD T19
    model = nn.Sequential(TernaryLinear(8, 8), bittorch.TernaryConv2d(3, 4, 1), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match="^0 of Sequential was a TernaryLinear and becomes an ordinary Li") as caught:
        setattr(model, "0", nn.Linear(8, 8))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="1 of Sequential was a TernaryConv2d and becomes an ordinary Conv2d"):
        setattr(model, "1", nn.Conv2d(3, 4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model[0], model[2] = TernaryLinear(8, 8), nn.Linear(8, 8)


@pytest.mark.slow
def test_resized_head_warns() -> None:  # FIELD T19
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **sizes))
    bittorch.quantize_(model)
    with pytest.warns(UserWarning, match="lm_head of LlamaForCausalLM was a TernaryLinear and becomes an ordinary"):
        model.resize_token_embeddings(24)
