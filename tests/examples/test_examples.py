"""Every example as a user runs it: a process of its own, tiny settings, its exit code and key lines. Those that the
roadmap names are in tests/test_roadmap_api.py; what ends before any work runs in this process."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
pytest.importorskip("tqdm", reason="the examples need bittorch[demo]")


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def stopped(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> object:
    """Runs a script here until it exits; returns with what: 0, or the message of a failure."""
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return end.value.code


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


def test_xor_untrained_fails_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "try more --steps" in str(stopped(monkeypatch, "examples/xor_mlp.py", "--steps", 1, "--hidden", 1))


def test_too_small_a_memory_fails_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "examples/key_value_memory.py"
    assert "a larger --dimension" in str(stopped(monkeypatch, script, "--pairs", 60, "--dimension", 64))
    assert "60 pairs in one vector of 64 trits, 16 bytes" in capsys.readouterr().out


@pytest.mark.slow
def test_500_pairs_in_one_vector() -> None:
    assert "OK: at least 90 % retrieved" in passed("examples/key_value_memory.py")


@pytest.mark.slow
def test_mnist_without_compare_trains_the_ternary_net_alone(tmp_path: Path, digits: Path) -> None:
    pytest.importorskip("matplotlib")
    text = passed("examples/mnist_mlp_ternary.py", "--epochs", 1, "--data", digits, "--out", tmp_path / "out")
    assert text.count("OK: ") == 2
    assert "FP32" not in text.split("test accuracy")[1].split("ternary:")[0]


@pytest.mark.slow
def test_distillation_prints_three_scores(digits: Path) -> None:
    text = passed("examples/mnist_distill.py", "--epochs", 1, "--data", digits)
    assert text.count("OK: ") == 1
    assert [line.split("  ")[1] for line in text.splitlines()[-3:]] == [
        "FP32 teacher",
        "ternary, labels",
        "ternary, distilled",
    ]


def test_mnist_bad_data_says_what_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = stopped(monkeypatch, "examples/mnist_mlp_ternary.py", "--data", tmp_path / "none.npz")
    assert "give an npz file with arrays x_train" in str(message)


@pytest.mark.slow
def test_model_is_converted_trained_and_folded() -> None:  # FIELD N16
    text = passed("examples/convert_model.py", "--steps", 40)
    assert "3 layers became ternary; ternary are " in text
    assert "folded: norm1 into conv1, norm2 into conv2" in text
    assert "OK: trained and exported outputs are equal bit for bit" in text


def test_char_lm_short_text_fails_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("short")
    assert "give a longer --data" in str(stopped(monkeypatch, "examples/tiny_char_lm_ternary.py", "--data", text))


@pytest.mark.slow
def test_inference_demo_fresh_process_gives_same_bits(tmp_path: Path) -> None:
    text = passed("examples/inference_demo.py", "--steps", 2, "--out", tmp_path)
    assert "OK: all 2560 outputs of the loaded model are equal" in text
    assert "packed" in passed("examples/inference_demo.py", "--load", tmp_path / "inference_demo.safetensors")


def test_inference_demo_missing_checkpoint_fails_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = stopped(monkeypatch, "examples/inference_demo.py", "--load", tmp_path / "none.safetensors")
    assert "without --load to write a checkpoint" in str(message)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packed_inference", "trit_depth", "training_cost", "lm"])
def test_benchmark_quick_writes_json(name: str, tmp_path: Path) -> None:
    path, more = tmp_path / "result.json", ["--head", "Q6_K"] if name == "lm" else []
    assert "written: " in passed(f"benchmark/bench_{name}.py", "--quick", "--json", path, *more)
    written = "bench_lm_head_q6_k" if name == "lm" else name
    assert f'"benchmark": "{written}"' in path.read_text()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_benchmark_without_a_device_says_so() -> None:
    done = run("benchmark/bench_cuda_kernels.py", "--quick")
    assert done.returncode == 2
    assert "torch.cuda.is_available() is False" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path) -> None:
    if "from transformers" in path.read_text():
        pytest.importorskip("transformers")
    assert stopped(monkeypatch, f"examples/{path.name}", "--help") == 0
    assert re.match(rf"usage: {path.name}\s", capsys.readouterr().out)
