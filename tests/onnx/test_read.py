"""MatMulNBits of 2 bits as packed layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import helpers

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx_ir as ir
from onnx import ModelProto, TensorProto, helper, load, numpy_helper, save

import bittorch.onnx
from bittorch import ops
from bittorch.onnx.lowering import Form, lower
from tests.onnx import files

K, N, BLOCK = 64, 12, 16


def write(path: Path, more: list[str] | None = None, name: str = "proj", **changed: Any) -> Path:
    """One node as onnxruntime's own quantiser makes it; ``changed`` operands or attributes."""
    rng = np.random.default_rng(0)
    sizes = {"K": K, "N": N, "bits": 2, "block_size": BLOCK}
    blocks = -(-changed.get("K", K) // BLOCK)
    stored = {
        "B": changed.get("B", rng.integers(1, 4, (N, blocks, BLOCK)).astype(np.uint8)),
        "scales": changed.get("scales", rng.random((N, blocks)).astype(np.float32) + 1),
        **{key: changed[key] for key in ("zero_points", "g_idx", "bias") if key in changed},
    }
    if stored["B"].ndim == 3 and stored["B"].shape[-1] == BLOCK:
        fours = stored["B"].reshape(N, blocks, BLOCK // 4, 4)
        stored["B"] = sum(fours[..., i] << 2 * i for i in range(4)).astype(np.uint8)
    inputs = ["x", *(key if key in stored else "" for key in ("B", "scales", "zero_points", "g_idx", "bias"))]
    given = {**sizes, **{key: value for key, value in changed.items() if key in sizes}}
    nodes = [
        helper.make_node("MatMulNBits", inputs, [f"y{i}"], name=name, domain="com.microsoft", **given)
        for i in range(len(more or []) + 1)
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", given["K"]])
    ys = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["batch", N]) for node in nodes]
    tensors = [numpy_helper.from_array(value, key) for key, value in stored.items()]
    graph = helper.make_graph(nodes, "g", [x], ys, tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def in_onnxruntime(path: Path, x: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["y0"], {"x": x.numpy()})[0])


def zeros(*values: int) -> np.ndarray:
    """Zero points of four blocks, the same for each row."""
    return np.full((N, 1), sum(v << 2 * i for i, v in enumerate(values)), np.uint8)


@helpers.each(
    "changed",
    [
        {},
        {"bias": np.arange(N, dtype=np.float32)},
        {"zero_points": zeros(2, 2, 2, 2)},
        {"B": np.full((N, 4, BLOCK), 2, np.uint8), "zero_points": zeros(1, 3, 2, 1)},
        {"scales": np.repeat(np.arange(1, N + 1, dtype=np.float32)[:, None], 4, 1)},
        {"K": 50, "scales": np.repeat(np.arange(1, N + 1, dtype=np.float32)[:, None], 4, 1)},
    ],
    ids=["plain", "bias", "zero points", "other zero points", "a scale a row", "a last block that is not full"],
)
def test_layers_multiply_as_onnxruntime_does(changed: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", **changed)
    (layer,) = bittorch.onnx.load_matmulnbits(path).values()
    x = helpers.randn(3, changed.get("K", K))
    helpers.assert_near(layer(x), in_onnxruntime(path, x), 1e-6)
    assert layer.groups == (1 if "scales" in changed else 4)
    assert layer.name == "proj"


@helpers.each("group, k", [(32, 96), (0, 100)])
def test_a_round_trip_gives_the_bits_back(group: int, k: int, tmp_path: Path) -> None:
    granularity = "group" if group else "channel"
    packed, scale = ops.ternary_quantize(helpers.randn(N, k), "max", "ls", 0.7, granularity, group)
    bias = helpers.randn(N, seed=1)
    x = helpers.randn(2, k)
    model = files.placeholder("ternary_linear_packed", x, [packed, scale, bias], {}, torch.empty(2, N))
    lower(model, Form("matmulnbits", 25))
    ir.save(model, tmp_path / "model.onnx")
    layer = bittorch.onnx.load_matmulnbits(tmp_path / "model.onnx")["block.proj"]
    for given, found in ((packed, layer.weight_packed), (scale, layer.scale), (bias, layer.bias)):
        assert torch.equal(given, found)


def test_nodes_of_one_name_are_called_by_their_outputs(tmp_path: Path) -> None:
    assert set(bittorch.onnx.load_matmulnbits(write(tmp_path / "m", more=["again"]))) == {"y0", "y1"}


def test_what_is_not_ternary_is_refused_by_name(tmp_path: Path) -> None:
    for changed, match in [
        ({"bits": 4}, r"has no MatMulNBits of 2 bits, but of \[4\] bits"),
        ({"B": np.zeros((N, 4, BLOCK), np.uint8)}, r"proj is not ternary: it has the weight -2 times its scale"),
        ({"zero_points": np.full((N, 4), 1.5, np.float32)}, r"not ternary: it has the weight -?[0-9.]*5 times"),
        ({"g_idx": np.zeros(K, np.int32)}, r"proj has g_idx"),
        ({"scales": np.ones((N, 3), np.float32)}, r"12 x 4 scales, got \(12, 3\)"),
        ({"B": np.zeros((N, 4, 3), np.uint8)}, r"B of proj must be 12 x 16 uint8, got uint8 \(12, 4, 3\)"),
        ({"zero_points": zeros(2, 2)[:5]}, r"zero points of proj must be 12 x 1 uint8"),
        ({"zero_points": np.full((N, 3), 2, np.float32)}, r"zero points of proj must be 12 x 4, got \(12, 3\)"),
        ({"K": 50}, r"scales of its own for the last 2 of 50 columns"),
        ({"scales": np.full((N, 4), np.nan, np.float32)}, r"proj.*scale must be finite"),
    ]:
        with pytest.raises(ValueError, match=match):
            bittorch.onnx.load_matmulnbits(write(tmp_path / "m.onnx", **changed))


def without(name: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        attributes = model.graph.node[0].attribute
        attributes.remove(next(each for each in attributes if each.name == name))

    return change


def attribute(**changed: int | str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for name, value in changed.items():
            if name in ("K", "N", "bits", "block_size"):
                without(name)(model)
            model.graph.node[0].attribute.append(helper.make_attribute(name, value))

    return change


def short(model: ModelProto) -> None:
    model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:12]


def other_domain(model: ModelProto) -> None:
    model.graph.node[0].domain = "other"


def no_outputs(model: ModelProto) -> None:
    model.graph.node[0].name = ""
    del model.graph.node[0].output[:]
    del model.graph.output[:]


def other_type(model: ModelProto) -> None:
    model.graph.initializer[1].data_type = 99


def other_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 77


@helpers.each(
    "change, match",
    [
        (without("K"), r"proj must have whole numbers K and N above 0, and block_size .*, got None, 12 and 16"),
        (attribute(K=-64, N=-12), r"got -64, -12 and 16"),
        (attribute(block_size=0), r"got 64, 12 and 0"),
        (attribute(block_size=24), r"got 64, 12 and 24"),
        (attribute(K="64"), r"got '64', 12 and 16"),
        (attribute(weight_prepacked=1), r"proj has weight_prepacked=1, an order of codes for one kind of device"),
        (attribute(bits="2"), r"has no MatMulNBits of 2 bits, but of \['2'\] bits"),
        (short, r"scales of proj cannot be read: .+"),
        (other_domain, r"has no MatMulNBits of 2 bits$"),
        (no_outputs, r"MatMulNBits without outputs"),
        (other_input, r"m.onnx is no ONNX file, or damaged: 77 is not a valid DataType$"),
        (other_type, r"m.onnx is no ONNX file, or damaged: "),
    ],
    ids=[
        "no K",
        "below 0",
        "no block",
        "odd block",
        "text",
        "packed for CUDA",
        "text bits",
        "short",
        "domain",
        "no outputs",
        "input",
        "type",
    ],
)
def test_damaged_nodes_are_refused_by_name(change: Callable[[ModelProto], None], match: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    model = load(path)
    change(model)
    save(model, path)
    with pytest.raises(ValueError, match=match):
        bittorch.onnx.load_matmulnbits(path)


def test_files_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    whole = path.read_bytes()
    for data in (b"GGUF" + bytes(100), whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"m\.onnx is no ONNX file, or damaged: "):
            bittorch.onnx.load_matmulnbits(path)
