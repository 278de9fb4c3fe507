"""The nodes that stand for packed products while torch makes the graph around them.

torch.onnx sees tensors without values. A node of the domain ``bittorch`` keeps the operands of an op together, and
`bittorch.onnx.lowering` replaces it where the weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import values

DOMAIN = "bittorch"
_TYPES = [f"tensor({name})" for name in ("float", "float16", "bfloat16", "uint8", "int32", "int64")]
_INPUTS: dict[str, tuple[str, ...]] = {
    "ternary_linear_packed": ("x", "w_packed", "scale", "bias"),
    "ternary_linear_w2a8": ("x", "w_packed", "scale", "bias", "norm_weight"),
    "trit_depth_linear": ("x", "w_packed", "scale", "bias", "norm_weight"),
    "ternary_conv2d_packed": ("x", "w_packed", "scale", "bias"),
    "ternary_embedding": ("indices", "w_packed", "scale"),
}
_INT, _INTS, _TEXT = OpSchema.AttrType.INT, OpSchema.AttrType.INTS, OpSchema.AttrType.STRING
_ATTRIBUTES: dict[str, dict[str, OpSchema.AttrType]] = {
    "ternary_linear_packed": {},
    "ternary_linear_w2a8": {"activation_bits": _INT, "norm_eps": _TEXT},
    "trit_depth_linear": {"depth": _INT, "activation_bits": _INT, "norm_eps": _TEXT},
    "ternary_conv2d_packed": {
        **dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), _INTS),
        "groups": _INT,
        "activation_bits": _INT,
    },
    "ternary_embedding": {"in_features": _INT, "depth": _INT},
}


def _op(name: str) -> values.Op:
    optional = OpSchema.FormalParameterOption.Optional
    inputs = [
        OpSchema.FormalParameter(
            each, f"T{i}", param_option=optional if i > 2 else OpSchema.FormalParameterOption.Single
        )
        for i, each in enumerate(_INPUTS[name])
    ]
    schema = OpSchema(
        name=name,
        domain=DOMAIN,
        since_version=1,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("y", "Ty")],
        type_constraints=[(t, _TYPES, "") for t in (*(f"T{i}" for i in range(len(inputs))), "Ty")],
        attributes=[OpSchema.Attribute(each, kind, "", required=False) for each, kind in _ATTRIBUTES[name].items()],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)


def _translation(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    schema = getattr(torch.ops.bittorch, name).default._schema

    def translate(*given: Any, **named: Any) -> Any:
        defaults = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
        at_hand = {**defaults, **{a.name: v for a, v in zip(schema.arguments, given, strict=False)}, **named}
        if at_hand.get("x_scale") is not None:
            raise NotImplementedError("ternary_linear_w2a8 of codes that are quantised already has no form in ONNX")
        if "norm_eps" in at_hand:
            at_hand["norm_eps"] = repr(float(at_hand["norm_eps"]))  # float64: an attribute of floats has float32
        return op(*(at_hand[each] for each in _INPUTS[name]), **{each: at_hand[each] for each in _ATTRIBUTES[name]})

    return translate


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch.onnx.export takes as ``custom_translation_table``."""
    return {getattr(torch.ops.bittorch, name).default: _translation(name, _op(name)) for name in _INPUTS}


def names() -> tuple[str, ...]:
    """The ops that have a form in ONNX."""
    return tuple(_INPUTS)
