"""Short words for the nodes that a placeholder becomes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

FLOAT, DOUBLE, INT8 = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT8
_NUMPY = {FLOAT: np.float32, DOUBLE: np.float64}


class Nodes:
    """The nodes and tensors in place of one placeholder.

    Args:
        name: of the layer; its tensors are called ``name.kind``.
        taken: names of tensors in the graph.
    """

    def __init__(self, name: str, taken: set[str]) -> None:
        self.name, self._taken = name, taken
        self.made: list[ir.Node] = []
        self.tensors: list[ir.Value] = []

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output, or a list of them. An optional input that is not there is None."""
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=outputs)
        node.name = self.name if domain else f"{self.name}/{kind}_{len(self.made)}"  # as the reader finds it
        self.made.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def tensor(self, kind: str, value: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """A weight that the file holds."""
        tensor = ir.Tensor(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        names = (f"{self.name}.{kind}" + (f"_{i}" if i else "") for i in itertools.count())
        name = tensor.name = next(each for each in names if each not in self._taken)
        self._taken.add(name)
        made = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.tensors.append(made)
        return made

    def number(self, value: float, kind: ir.DataType = FLOAT) -> ir.Value:
        return self.op("Constant", value=ir.tensor(np.asarray(value, _NUMPY[kind])))

    def sizes(self, *values: int) -> ir.Value:
        return self.op("Constant", value=ir.tensor(np.asarray(values, np.int64)))

    def cast(self, x: ir.Value, kind: ir.DataType) -> ir.Value:
        return self.op("Cast", x, to=int(kind))

    def float32(self, x: ir.Value) -> ir.Value:
        """``x`` in float32; a placeholder's inputs know their types."""
        return x if x.dtype == FLOAT else self.cast(x, FLOAT)

    def sum_of_parts(self, x: ir.Value, axis: int, count: int) -> ir.Value:
        """The sum of two or more equal parts along an axis, from the first one on."""
        y, *rest = self.op("Split", x, axis=axis, num_outputs=count, outputs=count)
        for part in rest:
            y = self.op("Add", y, part)
        return y

    def with_bias(self, y: ir.Value, bias: ir.Value | None, shape: Sequence[int] = ()) -> ir.Value:
        """The sum in float32; ``shape`` for a bias of channels."""
        if bias is None:
            return y
        bias = self.float32(bias)
        return self.op("Add", y, self.op("Reshape", bias, self.sizes(*shape)) if shape else bias)
