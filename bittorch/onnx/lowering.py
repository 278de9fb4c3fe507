"""Placeholders to the operators of a format, where weights are at hand."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateHashedInitializersPass, RemoveUnusedNodesPass

from bittorch.onnx import activations, floats, integers
from bittorch.onnx.nodes import Nodes
from bittorch.onnx.placeholders import DOMAIN
from bittorch.onnx.weights import Weight, scales_of, weight_of

INT2_FROM = 25
"""The opset that brings tensors of 2 bits."""
_IR_VERSION = 13  # of files with INT2


@dataclass(frozen=True)
class Form:
    """What `bittorch.onnx.export` is asked for."""

    format: str
    opset: int
    block_size: int | None = None
    accuracy_level: int = 0


class _Placeholder:
    """A node of the domain ``bittorch``, its weights read."""

    def __init__(self, node: ir.Node, form: Form) -> None:
        self.node, self.form, self.name = node, form, _layer_name(node)
        inputs = [*node.inputs, None, None, None, None, None]
        self.x, packed, scale, self.bias, self.norm_weight = inputs[:5]
        self.packed, self.scale = (self._values(each) for each in (packed, scale))
        self.rank = len(self.x.shape) if self.x is not None and self.x.shape is not None else 0

    def attribute(self, name: str) -> Any:
        return self.node.attributes[name].value

    def _values(self, value: ir.Value | None) -> np.ndarray:
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if tensor is None:
            raise ValueError(
                f"{self.name}: its codes or scales are computed in the graph; only stored ones are written"
            )
        return tensor.numpy()

    def weight(self, columns: int, rows: int | None = None) -> Weight:
        return weight_of(self.name, self.packed, self.scale, columns, rows)

    def needs_int2(self) -> None:
        if self.form.opset < INT2_FROM:
            raise ValueError(
                f"{self.name} is stored as INT2, which opset {INT2_FROM} brings, got opset={self.form.opset}; linear "
                'layers alone, with format="matmulnbits", take older ones'
            )

    def refuse_floats(self) -> None:
        if self.form.format == "exact":
            raise ValueError(
                f'format="exact", but {self.name} has floating activations, whose sums onnxruntime adds in another '
                'order; give it activation_bits, or take "matmulnbits" or "qdq"'
            )


def _layer_name(node: ir.Node) -> str:
    """The module that called the op, as torch.onnx notes it: scopes from the model down to the op."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return (scopes[-2] if len(scopes) > 1 else "") or "layer"


def _columns(it: _Placeholder) -> int:
    size = it.x.shape[-1] if it.x is not None and it.x.shape is not None else None
    if not isinstance(size, int):
        raise ValueError(f"{it.name}: the last dimension of its input is {size}, and must be fixed")
    return size


def _float_linear(nodes: Nodes, it: _Placeholder, x: ir.Value, weight: Weight, depth: int) -> tuple[ir.Value, str]:
    bias = it.bias if depth == 1 else None
    if it.form.format == "matmulnbits":
        y = floats.by_blocks(nodes, x, weight, bias, it.form.block_size, it.form.accuracy_level)
        how = f"MatMulNBits, 2 bit, blocks of {nodes.made[-1].attributes['block_size'].value}"
    else:
        it.needs_int2()
        y, how = floats.by_standard_operators(nodes, x, weight, bias), "INT2 DequantizeLinear, MatMul"
    return (y if depth == 1 else floats.plane_sum(nodes, y, depth, it.bias)), how


def _linear_packed(nodes: Nodes, it: _Placeholder) -> tuple[ir.Value, str]:
    it.refuse_floats()
    assert it.x is not None
    return _float_linear(nodes, it, nodes.float32(it.x), it.weight(_columns(it)), 1)


def _linear_integers(nodes: Nodes, it: _Placeholder) -> tuple[ir.Value, str]:
    """ternary_linear_w2a8, and trit_depth_linear, whose scales are those of the lowest plane."""
    depth, bits = (
        int(it.attribute("depth")) if "depth" in it.node.attributes else 1,
        int(it.attribute("activation_bits")),
    )
    assert it.x is not None
    x = nodes.float32(it.x)
    if it.norm_weight is not None:
        x = activations.rms_norm(nodes, x, it.norm_weight, float(it.attribute("norm_eps")))
    rows = len(it.packed) // depth
    weight = it.weight(_columns(it), rows)
    if it.form.format == "exact":
        it.needs_int2()
        planes = weight.codes.reshape(depth, rows, -1)
        return integers.linear(nodes, x, planes, weight.scales, it.bias, bits), f"{bits} bit activations, MatMulInteger"
    powers = np.repeat(3.0 ** np.arange(depth), rows)[:, None]
    scales = (powers * np.tile(weight.scales, (depth, 1)).astype(np.float64)).astype(np.float32)
    x = activations.rounded(nodes, x, bits, [-1])
    y, how = _float_linear(nodes, it, x, Weight(it.name, weight.codes, scales), depth)
    return y, f"activations rounded to {bits} bits, {how}"


def _conv2d(nodes: Nodes, it: _Placeholder) -> tuple[ir.Value, str]:
    it.needs_int2()
    bits, groups = int(it.attribute("activation_bits")), int(it.attribute("groups"))
    kernel = [int(each) for each in it.attribute("kernel_size")]
    assert it.x is not None
    assert it.x.shape is not None
    channels = it.x.shape[1]
    if not isinstance(channels, int):
        raise ValueError(f"{it.name}: the channels of its input are {channels}, and must be fixed")
    shape = [len(it.packed), channels // groups, *kernel]
    steps: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [int(each) for each in it.attribute("stride")],
        "pads": [int(each) for each in it.attribute("padding")] * 2,
        "dilations": [int(each) for each in it.attribute("dilation")],
        "group": groups,
    }
    weight, x = it.weight(int(np.prod(shape[1:]))), nodes.float32(it.x)
    if bits and it.form.format == "exact":
        y = integers.conv2d(nodes, x, weight.codes, weight.scales, it.bias, bits, shape, steps)
        return y, f"{bits} bit activations, ConvInteger"
    it.refuse_floats()
    x = activations.rounded(nodes, x, bits, [1, 2, 3]) if bits else x
    how = "INT2 DequantizeLinear, Conv"
    y = floats.conv2d(nodes, x, weight, it.bias, shape, steps)
    return y, f"activations rounded to {bits} bits, {how}" if bits else how


def _embedding(nodes: Nodes, it: _Placeholder) -> tuple[ir.Value, str]:
    columns, depth = int(it.attribute("in_features")), int(it.attribute("depth"))
    assert it.x is not None
    scales = scales_of(it.scale, len(it.packed))
    return floats.embedding(nodes, it.x, it.packed, scales, columns, depth), "Gather of packed rows"


_LOWERED: dict[str, Callable[[Nodes, _Placeholder], tuple[ir.Value, str]]] = {
    "ternary_linear_packed": _linear_packed,
    "ternary_linear_w2a8": _linear_integers,
    "trit_depth_linear": _linear_integers,
    "ternary_conv2d_packed": _conv2d,
    "ternary_embedding": _embedding,
}


def lower(model: ir.Model, form: Form) -> dict[str, str]:
    """Replaces every placeholder of ``model``, in place.

    Returns:
        How each layer is stored, by its name.

    Raises:
        ValueError: a layer that the format or the opset cannot hold; the message names it.
    """
    how: dict[str, str] = {}
    found = [node for node in model.graph.all_nodes() if node.domain == DOMAIN]
    for node in found:
        it = _Placeholder(node, form)
        name, calls = it.name, 1
        while name in how:  # a module that is called again
            calls += 1
            name = f"{it.name}_{calls}"
        nodes = Nodes(name, set(model.graph.initializers))
        y, how[name] = _LOWERED[node.op_type](nodes, it)
        old = node.outputs[0]
        if old.dtype is not None and old.dtype != ir.DataType.FLOAT:
            y = nodes.cast(y, old.dtype)
        for tensor in nodes.tensors:
            model.graph.register_initializer(tensor)
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes.made, [old], [y])
    model.opset_imports.pop(DOMAIN, None)
    if any(node.domain == "com.microsoft" for node in model.graph.all_nodes()):
        model.opset_imports["com.microsoft"] = 1
    if form.opset >= INT2_FROM:
        model.ir_version = max(model.ir_version, _IR_VERSION)
    RemoveUnusedNodesPass()(model)
    if form.format != "qdq":  # where onnxruntime fuses only weights that one node has
        _deduplicate(model)
    return how


def _deduplicate(model: ir.Model) -> None:
    """Keeps one of the tensors of a module that is called more than once."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and not tensor.numpy().flags.c_contiguous:  # whose bytes the pass cannot hash
                whole = np.ascontiguousarray(tensor.numpy())
                value.const_value = ir.Tensor(whole, dtype=tensor.dtype, name=tensor.name)
    DeduplicateHashedInitializersPass()(model)
