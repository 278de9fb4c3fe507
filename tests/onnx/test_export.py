"""Whole models: torch.onnx around the packed layers, onnxruntime beside them, and nothing half written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bittorch
from tests import helpers

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx_ir as ir

import bittorch.onnx
from tests.onnx import files


class Net(nn.Module):
    """Linear layers, one of them in two places, with an activation between."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        made = bittorch.TernaryQuantConfig(**config)
        self.first = bittorch.TernaryLinear(64, 96, config=made)
        self.twice = bittorch.TernaryLinear(96, 96, bias=False, config=made)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(torch.abs(self.twice(torch.abs(self.first(x)))))


def packed(**config: Any) -> nn.Module:
    return bittorch.export_for_inference(Net(**config).eval())


def tokens(batch: int) -> Tensor:
    x = helpers.randn(batch, 64, seed=batch)
    return x * 10.0 ** (torch.arange(batch) % 5 - 2).view(-1, 1)


def run(path: Path, x: Tensor) -> Tensor:
    return torch.from_numpy(files.session(path).run(None, {"x": x.numpy()})[0])


@pytest.fixture(autouse=True)
def _nothing_is_left_beside(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_int8_models_are_bit_for_bit_at_every_batch(tmp_path: Path) -> None:
    model, path = packed(activation_bits=8), tmp_path / "model.onnx"
    report = bittorch.onnx.export(model, tokens(1), path, "exact")
    for batch in (1, 5, 33):
        assert torch.equal(run(path, tokens(batch)), model(tokens(batch)))
    assert report.equal
    assert report.error == 0
    assert [check.batch for check in report.checks] == [1, 2]
    assert report.layers == dict.fromkeys(("first", "twice", "twice_2"), "8 bit activations, MatMulInteger")
    stored = [value.const_value for value in ir.load(path).graph.initializers.values()]
    assert sum(each.nbytes for each in stored if each.dtype == ir.DataType.INT2) == (64 * 96 + 96 * 96) // 4
    assert report.nbytes == path.stat().st_size
    # What onnxruntime would make of the plain pattern takes one scale of activations for all rows.
    assert "MatMulIntegerToFloat" not in files.optimized(path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["matmulnbits", "qdq"])
def test_floating_models_are_near_and_stay_in_two_bits(tmp_path: Path, format: str) -> None:
    model, path = packed(granularity="group", group_size=32), tmp_path / "model.onnx"
    report = bittorch.onnx.export(model, tokens(3), path, format)
    assert 0 < report.error <= 2e-6
    for batch in (1, 5, 33):
        helpers.assert_near(run(path, tokens(batch)), model(tokens(batch)), 2e-6)
    assert files.optimized(path).count("MatMulNBits") == 3
    assert "blocks of 32" in str(report) or format == "qdq"


class Pictures(nn.Module):
    """What else a model has: embedding, convolution with odd padding, batch norm, planes, two inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        config = bittorch.TernaryQuantConfig(activation_bits=8)
        self.table = bittorch.TernaryEmbeddingInference.from_embedding(nn.Embedding(20, 16))
        self.conv = bittorch.TernaryConv2d(1, 4, 4, padding="same", config=config)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 10)

    def forward(self, indices: Tensor, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.conv(self.table(indices)[:, None] + x)).mean(2).flatten(1)
        return {"logits": self.head(y), "features": y}


@pytest.mark.slow
def test_a_model_of_every_layer_in_every_format(tmp_path: Path) -> None:
    model = bittorch.export_for_inference(Pictures().eval())
    config = bittorch.TernaryQuantConfig(activation_bits=16)
    model.head = bittorch.TernaryLinearInference.from_linear(model.head, 3, config)
    args = torch.randint(0, 20, (2, 8)), helpers.randn(2, 1, 8, 16)
    for format in ("exact", "qdq"):
        report = bittorch.onnx.export(model, args, tmp_path / format, format, dynamic_batch=format == "qdq")
        assert set(report.layers) == {"table", "conv", "head"}
        assert report.error <= 2e-6
        assert len(report.checks) == (2 if format == "qdq" else 1)


@pytest.mark.slow
def test_large_tensors_get_a_file_and_names_of_the_graph_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bittorch.onnx.export.__globals__, "_DATA_FROM", 1000)
    model, path = packed(), tmp_path / "model.onnx"
    path.symlink_to(tmp_path / "real.onnx")
    report = bittorch.onnx.export(model, tokens(2), path, opset=18, input_names=["x"], output_names=["y"])
    assert path.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "real.onnx", "real.onnx.data"]
    assert report.path == path
    assert report.nbytes == sum(each.stat().st_size for each in tmp_path.glob("real*"))
    helpers.assert_near(run(path, tokens(7)), model(tokens(7)), 2e-6)


class Fails(nn.Module):
    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.layer, self.after = packed().first, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(x))


class Hadamard(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return bittorch.ops.hadamard(x, 32)


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x.T @ x)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Drifts(nn.Module):
    """Is something else each time that it is called, as a model that the graph does not describe."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(()).item() if not torch.compiler.is_exporting() else x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "message"),
    [
        (Hadamard(), r"after calls bittorch::hadamard, which has no form in ONNX"),
        (Eigenvalues(), r"torch.onnx cannot write the model: .*eigh"),
        (Branch(), r"torch.export cannot trace Fails: .*"),
        (Drifts(), r"onnxruntime is off by .* at batch 2, and tolerance=0.01; nothing was written"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, after: nn.Module, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(ValueError, match=message):
        bittorch.onnx.export(Fails(after).eval(), tokens(2), path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "old"


def test_bad_arguments_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", None)
    model, path, x = packed(), tmp_path / "model.onnx", tokens(2)
    device = tmp_path / "device"
    os.mkfifo(device)
    for given, match in [
        ({"format": "int8"}, r"format must be one of matmulnbits, qdq, exact, got 'int8'"),
        ({"opset": 17}, r"opset must be from 18 to 25, got 17"),
        ({"opset": 26}, r"got 26"),
        ({"block_size": 48}, r"is one of 16, 32, 64, 128, 256; got 48"),
        ({"block_size": 64, "format": "qdq"}, r"goes with format=\"matmulnbits\""),
        ({"accuracy_level": 5}, r"accuracy_level must be from 0 to 4"),
        ({"tolerance": -1.0}, r"tolerance must be a number from 0 on, got -1.0"),
        ({"tolerance": math.nan}, r"tolerance must be .*, got nan"),
        ({"path": device}, r"no ordinary file"),
        ({"accuracy_level": 4, "format": "exact"}, r"and 0 with format=\"exact\""),
        ({"args": tokens(0)}, r"argument 0 is \(0, 64\).*needs samples"),
        ({"path": tmp_path}, r"is a folder"),
        ({"path": tmp_path / "no" / "model.onnx"}, r"its folder does not exist"),
        ({"model": Net().eval()}, r"first is a TernaryLinear; pass what export_for_inference returns"),
        ({"model": nn.Linear(2, 2).eval()}, r"no packed layer"),
        ({"model": packed().train()}, r"the model is in training mode"),
        ({"model": packed().to("meta")}, r"first.weight_packed is on meta"),
    ]:
        with pytest.raises(ValueError, match=match):
            bittorch.onnx.export(**{"model": model, "args": x, "path": path, **given})
    for given, match in [
        ({"args": x.bfloat16()}, r"argument 0 must be a dense CPU tensor.*got torch.bfloat16"),
        ({"args": (x, 3)}, r"argument 1 must be .*got int"),
        ({"model": "model"}, r"model must be a torch.nn.Module, got str"),
        ({"args": None}, r"args must be a tensor or a sequence of them, got NoneType"),
        ({"args": x.to_sparse()}, r"argument 0 must be .*got torch.float32 and torch.sparse_coo on cpu"),
        ({"opset": 25.0}, r"opset must be an integer, got 25.0"),
        ({"block_size": 64.0}, r"block_size must be an integer, got 64.0"),
        ({"accuracy_level": True}, r"accuracy_level must be an integer, got True"),
        ({"tolerance": "0.1"}, r"tolerance must be a number from 0 on, got '0.1'"),
        ({"input_names": "x"}, r"input_names must be a sequence of names, got 'x'"),
        ({"output_names": [0]}, r"output_names must be a sequence of names, got \[0\]"),
    ]:
        with pytest.raises(TypeError, match=match):
            bittorch.onnx.export(**{"model": model, "args": x, "path": path, **given})
    assert list(tmp_path.iterdir()) == [device]


class Passes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = packed()

    def forward(self, *args: Tensor) -> Tensor:
        return self.net(*args)


@pytest.mark.slow
def test_wrapped_models_have_an_open_batch(tmp_path: Path) -> None:
    for model in (Passes().eval(), torch.compile(packed(), backend="eager")):
        report = bittorch.onnx.export(model, tokens(2), tmp_path / "model.onnx")
        assert [check.batch for check in report.checks] == [2, 4]
        assert {name.removeprefix("net.") for name in report.layers} == {"first", "twice", "twice_2"}


class Bfloat16(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


@pytest.mark.slow
def test_names_outputs_and_arguments_of_the_graph_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for names in ({"input_names": ["x", "y"]}, {"output_names": ["y", "z"]}):
        with pytest.raises(ValueError, match=r"put_names has 2 names, but the graph has 1"):
            bittorch.onnx.export(packed(), tokens(2), path, **names)
    with pytest.raises(ValueError, match=r"output 0 is torch.bfloat16, which NumPy does not have"):
        bittorch.onnx.export(Fails(Bfloat16()).eval(), tokens(2), path)
    assert not path.exists()
    bittorch.onnx.export(packed(), tokens(2).requires_grad_(), path)


@pytest.mark.slow
def test_signals_and_transposed_convolutions_are_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(6)
    config = bittorch.TernaryQuantConfig(activation_bits=8)
    layers = nn.Conv1d(8, 8, 3, padding=1), nn.Unflatten(1, (2, 4)), nn.ConvTranspose2d(2, 4, 3, stride=2)
    model = bittorch.export_for_inference(bittorch.quantize_model(nn.Sequential(*layers), config))
    path, x = tmp_path / "model.onnx", helpers.randn(2, 8, 10)
    assert bittorch.onnx.export(model, x, path, "exact").equal
    assert torch.equal(torch.from_numpy(files.session(path).run(None, {"input": x.numpy()})[0]), model(x))


class Two(nn.Module):
    """A second output that is infinite wherever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = packed().first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, torch.full_like(y, math.inf)


@pytest.mark.slow
def test_checks_that_compare_nothing_are_refused_or_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"no output of the model has a finite value .* would compare nothing"):
        bittorch.onnx.export(packed(), torch.full((2, 64), math.nan), path)
    assert not list(tmp_path.iterdir())
    some = tokens(2)
    some[0, 0] = math.nan
    bittorch.onnx.export(packed().first, some, path, dynamic_batch=False)
    with pytest.warns(UserWarning, match="outputs 1 have no finite value") as caught:
        bittorch.onnx.export(Two().eval(), tokens(2), path, dynamic_batch=False)
    assert caught[0].filename == __file__


@pytest.mark.slow
def test_a_smaller_file_takes_the_tensors_of_the_larger_one_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, data = packed().first, tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    with monkeypatch.context() as patched:
        patched.setitem(bittorch.onnx.export.__globals__, "_DATA_FROM", 1000)
        bittorch.onnx.export(model, tokens(2), path)
    assert data.is_file()
    with pytest.raises(ValueError, match="off by"):
        bittorch.onnx.export(model, tokens(2), path, accuracy_level=4, tolerance=0)
    assert data.is_file()
    bittorch.onnx.export(model, tokens(2), path)
    assert not data.exists()
    assert files.session(path) is not None
    data.write_text("of somebody else")
    bittorch.onnx.export(model, tokens(2), path)
    assert data.read_text() == "of somebody else"
