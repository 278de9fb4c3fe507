"""Activations as `bittorch.ops.act_quantize` quantises them, in operators of ONNX that give the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bittorch.onnx.nodes import DOUBLE, FLOAT, INT8, Nodes


def rms_norm(nodes: Nodes, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value:
    """The norm that the quantiser takes in: squares summed in float64, the rest in float32."""
    wide = nodes.cast(x, DOUBLE)
    mean = nodes.op("ReduceMean", nodes.op("Mul", wide, wide), nodes.sizes(-1), keepdims=1)
    root = nodes.op("Sqrt", nodes.op("Add", mean, nodes.number(eps, DOUBLE)))
    r = nodes.cast(nodes.op("Div", nodes.number(1.0, DOUBLE), root), FLOAT)
    return nodes.op("Mul", nodes.op("Mul", x, r), nodes.float32(weight))


def quantized(nodes: Nodes, x: ir.Value, bits: int, axes: Sequence[int]) -> tuple[ir.Value, ir.Value]:
    """Integers and the scale along ``axes`` of a float32 ``x``: both float32 for 8 bits, else float64."""
    m = nodes.op("ReduceMax", nodes.op("Abs", x), nodes.sizes(*axes), keepdims=1)
    # 0, and NaN where a row has a NaN or an infinity, which ReduceMax of onnxruntime passes over: its scale is NaN.
    mark = nodes.op("ReduceSum", nodes.op("Sub", x, x), nodes.sizes(*axes), keepdims=1)
    if bits == 8:
        kind, most = FLOAT, 127.0
        m = divisor = nodes.op("Max", m, nodes.number(1e-5))
    else:
        kind, most = DOUBLE, float(sum(127 * 256**i for i in range(bits // 8)))
        x, m, mark = (nodes.cast(each, DOUBLE) for each in (x, m, mark))
        zero = nodes.op("Equal", m, nodes.number(0.0, DOUBLE))
        divisor = nodes.op("Where", zero, nodes.number(1.0, DOUBLE), m)
    q = nodes.op("Round", nodes.op("Mul", x, nodes.op("Div", nodes.number(most, kind), divisor)))
    q = nodes.op("Clip", q, nodes.number(-most, kind), nodes.number(most, kind))
    return q, nodes.op("Add", nodes.op("Div", m, nodes.number(most, kind)), mark)


def digits(nodes: Nodes, q: ir.Value, bits: int) -> list[ir.Value]:
    """int8 tensors with ``q = d0 + 256 d1 + 65536 d2``."""
    found = []
    for _ in range(bits // 8 - 1):
        base = nodes.number(256.0, DOUBLE)
        rest = nodes.op("Floor", nodes.op("Div", nodes.op("Add", q, nodes.number(128.0, DOUBLE)), base))
        found.append(nodes.cast(nodes.op("Sub", q, nodes.op("Mul", rest, base)), INT8))
        q = rest
    return [*found, nodes.cast(q, INT8)]


def rounded(nodes: Nodes, x: ir.Value, bits: int, axes: Sequence[int]) -> ir.Value:
    """``x`` as its integers times their scale, in float32."""
    q, scale = quantized(nodes, x, bits, axes)
    y = nodes.op("Mul", q, scale)
    return y if bits == 8 else nodes.cast(y, FLOAT)
