"""Each packed op in each format: onnxruntime beside the op, and beside float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import helpers

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from bittorch import ops
from bittorch.onnx.lowering import Form
from bittorch.ops import reference
from bittorch.quant import pack_trit_planes
from tests.onnx import files

N, K = 24, 96


def _weights(
    n: int = N, k: int = K, group: int | str = "channel", depth: int = 1, seed: int = 1
) -> tuple[Tensor, Tensor]:
    w = helpers.randn(n, k, seed=seed)
    granularity = group if isinstance(group, str) else "group"
    if depth > 1:
        return pack_trit_planes(w, depth, granularity, group if isinstance(group, int) else 128)
    return ops.ternary_quantize(w, "max", "ls", 0.7, granularity, group if isinstance(group, int) else 0)


def _tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of very different magnitude: one scale for all of them would show."""
    x = helpers.randn(*shape, seed=2)
    return (x * 10.0 ** torch.arange(-2, shape[0] - 2).view(-1, *[1] * (len(shape) - 1)).clamp(max=3)).to(dtype)


def _linear(form: Form, x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None) -> tuple[Tensor, str]:
    model = files.placeholder(
        "ternary_linear_packed", x, [packed, scale, bias], {}, x.new_empty(*x.shape[:-1], len(packed))
    )
    return files.run(model, form, x)


@helpers.each("format", ["matmulnbits", "qdq"])
@helpers.each("group", ["channel", "tensor", 32, 48])
def test_floating_products(format: str, group: int | str) -> None:
    packed, scale = _weights(group=group)
    bias, x = helpers.randn(N, seed=3), _tokens(5, K)
    y, how = _linear(Form(format, 25), x, packed, scale, bias)
    expected = reference.ternary_linear_packed(x.double(), packed, scale, bias.double())
    helpers.assert_near(y, expected, 5e-7)
    assert ("blocks of" in how) == (format == "matmulnbits")


@helpers.each("shape", [(1, 100), (3, 2, 7), (2, 260), (2, 2, 20), (7,)])
@helpers.each("format", ["matmulnbits", "qdq"])
def test_sizes_that_no_block_divides(shape: tuple[int, ...], format: str) -> None:
    packed, scale = _weights(n=5, k=shape[-1])
    x = helpers.randn(*shape)
    y, _ = _linear(Form(format, 25), x, packed, scale, None)
    helpers.assert_near(y, reference.ternary_linear_packed(x.double(), packed, scale), 5e-7)


def test_halves_are_multiplied_in_float32_and_rounded_once() -> None:
    packed, scale = _weights()
    bias, x = helpers.randn(N, dtype=torch.float16), helpers.randn(4, K, dtype=torch.float16)
    y, _ = _linear(Form("matmulnbits", 25), x, packed, scale, bias)
    assert y.dtype == torch.float16
    helpers.assert_near(y, ops.ternary_linear_packed(x, packed, scale, bias), 2e-4)


def _integers(
    form: Form, x: Tensor, weights: list[Tensor | None], bits: int, depth: int = 1, eps: float = 1e-5
) -> Tensor:
    attributes: dict[str, Any] = {"activation_bits": bits, "norm_eps": repr(eps)}
    op = "ternary_linear_w2a8"
    if depth > 1:
        op, attributes["depth"] = "trit_depth_linear", depth
        weights[1] = weights[1][: len(weights[1]) // depth]
    out = x.new_empty(*x.shape[:-1], len(weights[0]) // depth)
    return files.run(files.placeholder(op, x, weights, attributes, out), form, x)[0]


@helpers.each(
    "bits, group, shape",
    [(8, "channel", (5, K)), (8, 32, (2, 3, K)), (24, 32, (K,)), (8, "tensor", (K,)), (16, "channel", (2, 3, K))],
)
def test_integers_are_bit_for_bit(bits: int, group: int | str, shape: tuple[int, ...]) -> None:
    packed, scale = _weights(group=group)
    bias = helpers.randn(N, seed=3)
    x = _tokens(*shape) if len(shape) > 1 else helpers.randn(*shape)
    y = _integers(Form("exact", 25), x, [packed, scale, bias], bits)
    assert torch.equal(y, ops.ternary_linear_w2a8(x, packed, scale, bias, activation_bits=bits))


def test_halves_round_to_even_and_zeros_have_a_scale() -> None:
    packed, scale = _weights(k=8)
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5], [0.0] * 8, [1e-7] * 8])
    for bits in (8, 16):
        y = _integers(Form("exact", 25), x, [packed, scale, None], bits)
        assert torch.equal(y, ops.ternary_linear_w2a8(x, packed, scale, activation_bits=bits))


@helpers.each("bits", [8, 24])
def test_a_token_that_is_not_finite_is_nan_alone(bits: int) -> None:
    packed, scale = _weights()
    x = helpers.randn(4, K)
    x[0, 3], x[2, 5] = math.nan, -math.inf
    y = _integers(Form("exact", 25), x, [packed, scale, None], bits)
    expected = ops.ternary_linear_w2a8(x, packed, scale, activation_bits=bits)
    assert y[[0, 2]].isnan().all()
    assert torch.equal(y[[1, 3]], expected[[1, 3]])


def test_the_norm_of_the_quantizer_is_written() -> None:
    packed, scale = _weights()
    norm, x = helpers.randn(K, seed=4), _tokens(5, K)
    y = _integers(Form("exact", 25), x, [packed, scale, None, norm], 8, eps=1e-6)
    expected = ops.ternary_linear_w2a8(x, packed, scale, norm_weight=norm, norm_eps=1e-6)
    assert torch.equal(y, expected)
    assert not torch.equal(y, ops.ternary_linear_w2a8(x, packed, scale, norm_weight=norm, norm_eps=1e-2))


@helpers.each("depth, group, bits", [(2, 32, 8), (3, "channel", 16), (5, "channel", 8)])
def test_planes_are_one_integer(depth: int, group: int | str, bits: int) -> None:
    packed, scale = _weights(group=group, depth=depth)
    bias, x = helpers.randn(N, seed=3), _tokens(5, K)
    expected = ops.trit_depth_linear(x, packed, scale[:N], bias, depth=depth, activation_bits=bits)
    y = _integers(Form("exact", 25), x, [packed, scale, bias], bits, depth)
    assert torch.equal(y, expected)
    for format in ("matmulnbits", "qdq"):
        helpers.assert_near(_integers(Form(format, 25), x, [packed, scale, bias], bits, depth), expected, 1e-6)


def test_no_operand_can_saturate_without_vnni() -> None:
    """A CPU without VNNI adds two products of bytes, up to 255, in int16."""
    for depth in (1, 4, 5):
        packed, scale = _weights(depth=depth)
        weights = [packed, scale[:N], None]
        attributes = {"activation_bits": 8, "norm_eps": "1e-5", "depth": depth}
        model = files.placeholder("trit_depth_linear", helpers.randn(2, K), weights, attributes, torch.empty(2, N))
        files.run(model, Form("exact", 25), helpers.randn(2, K))
        codes = [v.const_value.numpy() for name, v in model.graph.initializers.items() if ".codes" in name]
        assert len(codes) == (2 if depth > 4 else 1)
        assert all(2 * 255 * abs(each.astype(int)).max() < 2**15 for each in codes)


@helpers.each("bits, group, groups", [(0, "channel", 2), (0, 12, 1), (8, "tensor", 1), (8, 12, 2), (16, "channel", 2)])
def test_convolutions(bits: int, group: int | str, groups: int) -> None:
    packed, scale = _weights(n=6, k=8 // groups * 9, group=group)
    bias, x = helpers.randn(6, seed=3), _tokens(3, 8, 9, 8)
    steps = {"kernel_size": [3, 3], "stride": [2, 1], "padding": [1, 2], "dilation": [1, 2], "groups": groups}
    expected = ops.ternary_conv2d_packed(x, packed, scale, bias, **steps, activation_bits=bits)
    for format in ("exact", "qdq") if bits else ("qdq", "matmulnbits"):
        attributes = {**steps, "activation_bits": bits}
        model = files.placeholder("ternary_conv2d_packed", x, [packed, scale, bias], attributes, expected)
        model.graph.outputs[0].shape = None
        y, _ = files.run(model, Form(format, 25), x)
        if format == "exact":
            assert torch.equal(y, expected)
        helpers.assert_near(y, expected, 1e-6)


@helpers.each(
    "group, depth, columns", [("channel", 1, 17), ("tensor", 1, 20), (4, 1, 20), (4, 3, 20), ("channel", 2, 17)]
)
def test_embeddings_are_bit_for_bit(group: int | str, depth: int, columns: int) -> None:
    packed, scale = _weights(n=9, k=columns, group=group, depth=depth)
    indices = torch.tensor([[0, 8, 3], [1, 1, 7]])
    expected = ops.ternary_embedding(indices, packed, scale, columns, torch.float16, depth)
    attributes = {"in_features": columns, "depth": depth}
    model = files.placeholder("ternary_embedding", indices, [packed, scale], attributes, expected)
    y, how = files.run(model, Form("exact", 18), indices)
    assert torch.equal(y, expected)
    assert how == "Gather of packed rows"


def test_what_a_format_cannot_hold_is_refused_by_name() -> None:
    x, bias = helpers.randn(2, K), None
    packed, scale = _weights()
    with pytest.raises(ValueError, match=r"block.proj has floating activations.*activation_bits"):
        _linear(Form("exact", 25), x, packed, scale, bias)
    with pytest.raises(ValueError, match=r"block.proj is stored as INT2, which opset 25 brings, got opset=24"):
        _linear(Form("qdq", 24), x, packed, scale, bias)
    with pytest.raises(ValueError, match=r"INT2.*got opset=18"):
        _integers(Form("exact", 18), x, [packed, scale, None], 8)
    packed, scale = _weights(group=24)
    with pytest.raises(ValueError, match=r"block.proj has a scale for 24 columns.*multiples of 16.*qdq"):
        _linear(Form("matmulnbits", 25), x, packed, scale, bias)
    packed, scale = _weights(group=32)
    with pytest.raises(ValueError, match=r"scale for 32 columns, which block_size=64 does not divide"):
        _linear(Form("matmulnbits", 25, block_size=64), x, packed, scale, bias)
    assert "blocks of 16" in _linear(Form("matmulnbits", 25, block_size=16), x, packed, scale, bias)[1]


def test_tensors_with_gaps_in_memory_are_written() -> None:
    packed, scale = _weights()
    x, bias = helpers.randn(2, K), helpers.randn(2 * N, seed=3)[::2]
    y, _ = _linear(Form("matmulnbits", 25), x, packed, scale, bias)
    helpers.assert_near(y, ops.ternary_linear_packed(x, packed, scale, bias), 1e-6)


def test_weights_that_are_computed_are_refused() -> None:
    packed, scale = _weights()
    x = helpers.randn(2, K)
    model = files.placeholder("ternary_linear_packed", x, [packed, scale, None], {}, torch.empty(2, N))
    model.graph.initializers.pop("w0").const_value = None
    with pytest.raises(ValueError, match=r"block.proj: its codes or scales are computed"):
        files.run(model, Form("matmulnbits", 25), x)
