"""Products of integer activations with ternary integers, bit for bit those of bittorch.

onnxruntime makes one operator of MatMulInteger, a cast to float and a product with scales, and that operator takes one
scale of activations for all rows. Here sums go through float64, which holds them exactly and hides the pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bittorch.onnx import activations
from bittorch.onnx.nodes import DOUBLE, FLOAT, INT8, Nodes
from bittorch.onnx.weights import Floats, Ints, smallest

_Product = Callable[[ir.Value, ir.Value], ir.Value]  # of int8 activations and int8 weights, int32


def parts_of(planes: Ints) -> list[tuple[Ints, int]]:
    """``sum_i 3^i planes[i]`` as int8 terms and their factors. A CPU without VNNI adds two products in int16, with
    bytes up to 255: more than 4 planes are two terms."""
    powers = 3 ** np.arange(len(planes), dtype=np.int64)
    low = np.tensordot(powers[:4], planes[:4].astype(np.int64), 1).astype(np.int8)
    return [(low, 1), *((plane, int(power)) for plane, power in zip(planes[4:], powers[4:], strict=True))]


def _sums(
    nodes: Nodes, digits: Sequence[ir.Value], terms: Sequence[tuple[ir.Value, int]], product: _Product
) -> ir.Value:
    """The exact sums in float64."""
    total = None
    for weight, factor in terms:
        for i, digit in enumerate(digits):
            part, times = nodes.cast(product(digit, weight), DOUBLE), float(factor * 256**i)
            part = part if times == 1 else nodes.op("Mul", part, nodes.number(times, DOUBLE))
            total = part if total is None else nodes.op("Add", total, part)
    assert total is not None
    return total


def _scaled(nodes: Nodes, sums: ir.Value, x_scale: ir.Value, scales: Floats, bits: int) -> ir.Value:
    """The epilogue but for the sum over groups and the bias; float64 for more than 8 bits."""
    if bits == 8:
        return nodes.op("Mul", nodes.cast(sums, FLOAT), nodes.op("Mul", x_scale, nodes.tensor("scale", scales)))
    wide = nodes.cast(nodes.tensor("scale", scales), DOUBLE)
    return nodes.op("Mul", nodes.op("Mul", sums, x_scale), wide)


def _weights(nodes: Nodes, parts: Sequence[tuple[Ints, int]]) -> list[tuple[ir.Value, int]]:
    return [(nodes.cast(nodes.tensor("codes", smallest(part)), INT8), factor) for part, factor in parts]


def linear(nodes: Nodes, x: ir.Value, planes: Ints, scales: Floats, bias: ir.Value | None, bits: int) -> ir.Value:
    """``(q @ c^T) * (x_scale * scale) + bias`` in float32 of a float32 ``x``.

    Args:
        planes: int8 ``(depth, out_features, in_features)`` of trits, ``c = sum_i 3^i planes[i]``.
        scales: float32 ``(out_features, groups)``.
    """
    q, x_scale = activations.quantized(nodes, x, bits, [-1])
    digits = activations.digits(nodes, q, bits)
    rows, groups = scales.shape
    weights = _weights(nodes, [(np.ascontiguousarray(part.T), factor) for part, factor in parts_of(planes)])

    def product(digit: ir.Value, weight: ir.Value) -> ir.Value:
        return nodes.op("MatMulInteger", digit, weight)

    if groups == 1:
        y = _scaled(nodes, _sums(nodes, digits, weights, product), x_scale, scales[:, 0], bits)
    else:
        size = planes.shape[-1] // groups
        shape = nodes.op("Concat", nodes.op("Shape", x, end=-1), nodes.sizes(rows), axis=0)
        tokens = nodes.sizes(-1, groups, size)
        digits = [nodes.op("Transpose", nodes.op("Reshape", each, tokens), perm=[1, 0, 2]) for each in digits]
        weights = [(nodes.op("Reshape", each, nodes.sizes(groups, size, rows)), factor) for each, factor in weights]
        x_scale = nodes.op("Reshape", x_scale, nodes.sizes(-1, 1))
        sums = _sums(nodes, digits, weights, product)
        y = nodes.sum_of_parts(_scaled(nodes, sums, x_scale, scales.T[:, None], bits), 0, groups)
        y = nodes.op("Reshape", y, shape)
    return nodes.with_bias(y if bits == 8 else nodes.cast(y, FLOAT), bias)


def conv2d(
    nodes: Nodes,
    x: ir.Value,
    codes: Ints,
    scales: Floats,
    bias: ir.Value | None,
    bits: int,
    shape: Sequence[int],
    steps: dict[str, Any],
) -> ir.Value:
    """The same of a convolution, with one scale a sample.

    Args:
        codes: int8 ``(out_channels, k)``.
        shape: of the dense weight.
        steps: attributes of ConvInteger.
    """
    q, x_scale = activations.quantized(nodes, x, bits, [1, 2, 3])
    digits = activations.digits(nodes, q, bits)
    stored = nodes.tensor("codes", smallest(codes))

    def product(digit: ir.Value, weight: ir.Value) -> ir.Value:
        return nodes.op("ConvInteger", digit, weight, **steps)

    y, groups = None, scales.shape[1]
    for g in range(groups):
        weight = stored
        if groups > 1:
            mask = np.zeros((1, codes.shape[1]), np.float32)
            mask[:, g * codes.shape[1] // groups : (g + 1) * codes.shape[1] // groups] = 1
            weight = nodes.op("Mul", nodes.cast(stored, FLOAT), nodes.tensor("group", mask))
        weight = nodes.op("Reshape", nodes.cast(weight, INT8), nodes.sizes(*shape))
        term = _scaled(nodes, _sums(nodes, digits, [(weight, 1)], product), x_scale, scales[:, g, None, None], bits)
        y = term if y is None else nodes.op("Add", y, term)
    assert y is not None
    return nodes.with_bias(y if bits == 8 else nodes.cast(y, FLOAT), bias, (1, -1, 1, 1))
