"""Products of floating activations with stored trits, and rows of them: float32 sums in the order of onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bittorch.onnx.nodes import DOUBLE, FLOAT, Nodes
from bittorch.onnx.weights import Weight, block_size, blocks, smallest


def by_blocks(
    nodes: Nodes, x: ir.Value, weight: Weight, bias: ir.Value | None, block: int | None, accuracy_level: int
) -> ir.Value:
    """MatMulNBits of onnxruntime, 2 bits. Its zero point is 2 where none is given."""
    size = block_size(weight, block)
    codes, scales = blocks(weight, size)
    return nodes.op(
        "MatMulNBits",
        x,
        nodes.tensor("blocks", codes),
        nodes.tensor("scale", scales),
        None,
        None,
        None if bias is None else nodes.float32(bias),
        domain="com.microsoft",
        K=weight.columns,
        N=weight.rows,
        bits=2,
        block_size=size,
        accuracy_level=accuracy_level,
    )


def _dequantized(nodes: Nodes, weight: Weight, transposed: bool) -> ir.Value:
    """INT2 and DequantizeLinear: (columns, rows) if ``transposed``, which onnxruntime fuses with the product."""
    codes, scales = (weight.codes.T, weight.scales.T) if transposed else (weight.codes, weight.scales)
    stored = nodes.tensor("codes", smallest(np.ascontiguousarray(codes)))
    if weight.groups == 1:
        return nodes.op("DequantizeLinear", stored, nodes.tensor("scale", scales.ravel()), axis=int(transposed))
    scale = nodes.tensor("scale", scales)
    return nodes.op("DequantizeLinear", stored, scale, axis=1 - int(transposed), block_size=weight.group_size)


def by_standard_operators(nodes: Nodes, x: ir.Value, weight: Weight, bias: ir.Value | None) -> ir.Value:
    """DequantizeLinear and MatMul. onnxruntime fuses them wrongly where rows are no multiple of 4: they are padded."""
    rows, more = weight.rows, -weight.rows % 4
    if more:
        padding = ((0, more), (0, 0))
        weight = Weight(weight.name, np.pad(weight.codes, padding), np.pad(weight.scales, padding, "edge"))
    y = nodes.op("MatMul", x, _dequantized(nodes, weight, transposed=True))
    if more:
        y = nodes.op("Slice", y, nodes.sizes(0), nodes.sizes(rows), nodes.sizes(-1))
    return nodes.with_bias(y, bias)


def conv2d(
    nodes: Nodes, x: ir.Value, weight: Weight, bias: ir.Value | None, shape: Sequence[int], steps: dict[str, Any]
) -> ir.Value:
    dense = nodes.op("Reshape", _dequantized(nodes, weight, transposed=False), nodes.sizes(*shape))
    return nodes.op("Conv", x, dense, None if bias is None else nodes.float32(bias), **steps)


def plane_sum(nodes: Nodes, rows: ir.Value, depth: int, bias: ir.Value | None) -> ir.Value:
    """The sum of the planes' own products, which stand one behind the other."""
    return nodes.with_bias(nodes.sum_of_parts(rows, -1, depth), bias)


def embedding(
    nodes: Nodes, indices: ir.Value, packed: np.ndarray, scales: np.ndarray, columns: int, depth: int
) -> ir.Value:
    """Rows of a packed table, unpacked after they are chosen: float32 products, of several planes summed in float64.

    Args:
        packed: uint8 ``(depth * rows, bytes)``.
        scales: float32 ``(depth * rows, groups)``.
    """
    rows, groups = len(packed) // depth, scales.shape[1]
    total = None
    for i in range(depth):
        plane = slice(i * rows, (i + 1) * rows)
        codes = _trits(nodes, nodes.op("Gather", nodes.tensor("rows", packed[plane]), indices), columns)
        scale = nodes.op("Gather", nodes.tensor("scale", scales[plane]), indices)
        if groups > 1:
            cut = nodes.op("Concat", nodes.op("Shape", indices), nodes.sizes(groups, columns // groups), axis=0)
            whole = nodes.op("Concat", nodes.op("Shape", indices), nodes.sizes(columns), axis=0)
            scale = nodes.op("Unsqueeze", scale, nodes.sizes(-1))
            term = nodes.op("Reshape", nodes.op("Mul", nodes.op("Reshape", codes, cut), scale), whole)
        else:
            term = nodes.op("Mul", codes, scale)
        term = term if depth == 1 else nodes.cast(term, DOUBLE)
        total = term if total is None else nodes.op("Add", total, term)
    assert total is not None
    return total if depth == 1 else nodes.cast(total, FLOAT)


def _trits(nodes: Nodes, packed: ir.Value, columns: int) -> ir.Value:
    """Floats -1, 0 and +1 of packed bytes ``(..., bytes)``."""
    shifts = nodes.op("Constant", value=ir.tensor(np.array([0, 2, 4, 6], np.uint8)))
    one, three = (nodes.op("Constant", value=ir.tensor(np.array(v, np.uint8))) for v in (1, 3))
    bytes_ = nodes.op("Unsqueeze", packed, nodes.sizes(-1))
    codes = nodes.op("BitwiseAnd", nodes.op("BitShift", bytes_, shifts, direction="RIGHT"), three)
    shape = nodes.op("Concat", nodes.op("Shape", packed, end=-1), nodes.sizes(-1), axis=0)
    codes = nodes.op("Reshape", codes, shape)
    codes = nodes.op("Slice", codes, nodes.sizes(0), nodes.sizes(columns), nodes.sizes(-1))
    plus = nodes.cast(nodes.op("BitwiseAnd", codes, one), FLOAT)
    return nodes.op("Sub", plus, nodes.cast(nodes.op("BitShift", codes, one, direction="RIGHT"), FLOAT))
