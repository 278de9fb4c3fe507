"""Graphs of one placeholder, lowered and run in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from bittorch.onnx.lowering import Form, lower

TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.uint8: ir.DataType.UINT8,
}


def placeholder(op: str, x: Tensor, weights: list[Tensor | None], attributes: dict[str, Any], out: Tensor) -> ir.Model:
    """The graph that torch.onnx would make of one call, its first dimension open."""

    def value(name: str, tensor: Tensor) -> ir.Value:
        shape: list[Any] = list(tensor.shape)
        if len(shape) > 1 and name in ("x", "y"):
            shape[0] = "batch"
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(TYPES[tensor.dtype]))

    inputs: list[ir.Value | None] = [value("x", x)]
    stored = []
    for i, tensor in enumerate(weights):
        inputs.append(None if tensor is None else value(f"w{i}", tensor))
        if tensor is not None:
            inputs[-1].const_value = ir.Tensor(tensor.numpy(), name=f"w{i}")
            stored.append(inputs[-1])
    y = value("y", out)
    scopes = {"pkg.torch.onnx.name_scopes": "['', 'block.proj', 'op']"}
    node = ir.Node("bittorch", op, inputs, ir.convenience.convert_attributes(attributes), outputs=[y])
    node.metadata_props.update(scopes)
    graph = ir.Graph([inputs[0]], [y], nodes=[node], initializers=stored, name="g", opset_imports={"": 25})
    return ir.Model(graph, ir_version=10)


def session(model: ir.Model | Path, accuracy_level: int = 0) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, form: Form, x: Tensor) -> tuple[Tensor, str]:
    """The result of the lowered graph, and how its one layer is stored."""
    model.graph.opset_imports[""] = form.opset
    how = lower(model, form)
    (y,) = session(model).run(None, {"x": x.numpy()})
    assert list(how) == ["block.proj"]
    return torch.from_numpy(np.asarray(y)), how["block.proj"]


def optimized(path: Path) -> list[str]:
    """What onnxruntime makes of a file when it loads it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in ir.load(path.with_suffix(".optimized")).graph]
