"""The 2-bit products of ONNX files as packed layers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from bittorch.nn import TernaryLinearInference
from bittorch.onnx.errors import innermost
from bittorch.quant.ternary_packed import pack_ternary


def _values(node: ir.Node, at: int) -> np.ndarray | None:
    value = node.inputs[at] if at < len(node.inputs) else None
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise ValueError(
            f"{_name(node)}: its input {at}, {value.name}, is computed in the graph and has no stored values"
        )
    try:
        return tensor.numpy()
    except (TypeError, ValueError) as error:  # fewer bytes than its shape needs, an unknown type, a path out of place
        raise ValueError(f"{value.name} of {_name(node)} cannot be read: {error}") from error


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _attribute(node: ir.Node, name: str) -> Any:
    return node.attributes[name].value if name in node.attributes else None


def _sizes(node: ir.Node) -> tuple[int, int, int]:
    """K, N and block_size; ValueError where they are no sizes."""
    found = columns, rows, block = tuple(_attribute(node, each) for each in ("K", "N", "block_size"))
    if any(type(each) is not int or each < 1 for each in found) or block < 16 or block & (block - 1):
        raise ValueError(
            f"{_name(node)} must have whole numbers K and N above 0, and block_size a power of 2 from 16 on, got "
            f"{columns!r}, {rows!r} and {block!r}"
        )
    return columns, rows, block


def _twos(packed: np.ndarray, what: str, shape: tuple[int, int]) -> np.ndarray:
    """uint8 values of 2 bits, the first in the lowest, as a matrix of ``shape``."""
    rows, columns = shape
    if packed.dtype != np.uint8 or packed.size != rows * -(-columns // 4):
        raise ValueError(f"{what} must be {rows} x {-(-columns // 4)} uint8, got {packed.dtype} {packed.shape}")
    fours = packed.reshape(rows, -1, 1) >> np.array([0, 2, 4, 6], np.uint8) & 3
    return fours.reshape(rows, -1)[:, :columns].astype(np.int16)


def _scales(scales: np.ndarray, name: str, columns: int, block: int) -> np.ndarray:
    """One column where a row has one scale, else a column a group."""
    if (scales == scales[:, :1]).all():
        return scales[:, :1]
    if columns % block:
        raise ValueError(
            f"{name} has scales of its own for the last {columns % block} of {columns} columns; packed rows have "
            "groups of one size"
        )
    return scales


def _layer(node: ir.Node) -> TernaryLinearInference:
    name = _name(node)
    columns, rows, block = _sizes(node)
    count = -(-columns // block)
    packed, scales, zero_points, bias = (_values(node, at) for at in (1, 2, 3, 5))
    if prepacked := _attribute(node, "weight_prepacked"):
        raise ValueError(f"{name} has weight_prepacked={prepacked!r}, an order of codes for one kind of device")
    if _values(node, 4) is not None:
        raise ValueError(f"{name} has g_idx, an order of columns that packed rows do not keep")
    if packed is None or scales is None or scales.size != rows * count:
        found = "none" if scales is None else str(scales.shape)
        raise ValueError(f"{name} must have codes, and {rows} x {count} scales, got {found}")
    codes = _twos(packed, f"B of {name}", (rows, count * block))
    zero = np.full((rows, count), 2, np.int16)
    if zero_points is not None and zero_points.dtype == np.uint8:
        zero = _twos(zero_points, f"zero points of {name}", (rows, count))
    elif zero_points is not None:
        if zero_points.size != rows * count:
            raise ValueError(f"zero points of {name} must be {rows} x {count}, got {zero_points.shape}")
        zero = zero_points.reshape(rows, count).astype(np.float32)
    trits = (codes.reshape(rows, count, block) - zero[..., None]).reshape(rows, -1)[:, :columns]
    if not np.isin(trits, (-1, 0, 1)).all():
        other = float(trits[~np.isin(trits, (-1, 0, 1))][0])
        raise ValueError(f"{name} is not ternary: it has the weight {other:g} times its scale")
    scale = _scales(scales.reshape(rows, count).astype(np.float32), name, columns, block)
    layer = TernaryLinearInference(columns, rows, bias is not None, groups=scale.shape[1], device="meta")
    state = {
        "weight_packed": pack_ternary(torch.from_numpy(trits.astype(np.int8))),
        "scale": torch.from_numpy(scale.ravel() if scale.shape[1] == 1 else scale.copy()),
    }
    if bias is not None:
        state["bias"] = torch.from_numpy(bias.astype(np.float32))
    try:
        layer.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{name}: {error}") from None
    layer.name = name
    return layer.eval()


def load_matmulnbits(path: str | os.PathLike[str]) -> dict[str, TernaryLinearInference]:
    """The ``MatMulNBits`` nodes of 2 bits in an ONNX file, as packed layers.

    ``w = (code - zero_point) * scale`` with codes 0 to 3 and, where none is given, zero point 2. Equal scales of a row
    become one. What stands around a node, and a bias that is added by a node of its own, is left to the caller.

    Args:
        path: of the file; its external data is read from where it says.

    Returns:
        The layers by the names of their nodes, or of the nodes' outputs where those have none or share one.

    Raises:
        ValueError: no ONNX file, or a damaged one; no such node; a node that is not ternary, has a reordering of
            columns, operands that are computed in the graph, or scales that are no groups of one size. The message
            names it.
        OSError: the file or its external data is not there.
    """
    named = os.fspath(path)
    try:
        model = ir.load(named)
    except OSError:
        raise
    except Exception as error:  # of protobuf and of onnx_ir, which share no class
        raise ValueError(f"{path} is no ONNX file, or damaged: {innermost(error)}") from error
    found = [
        node for node in model.graph.all_nodes() if (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits")
    ]
    if any(not node.outputs for node in found):
        raise ValueError(f"{path} is damaged: it has a MatMulNBits without outputs")
    two = [node for node in found if _attribute(node, "bits") == 2]
    if not two:
        others = sorted({_attribute(node, "bits") or 4 for node in found}, key=str)
        raise ValueError(f"{path} has no MatMulNBits of 2 bits" + (f", but of {others} bits" if others else ""))
    names = [_name(node) for node in two]
    return {
        (name if names.count(name) == 1 else str(node.outputs[0].name)): _layer(node)
        for name, node in zip(names, two, strict=True)
    }
