"""examples/onnx_roundtrip.py as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_a_net_goes_to_onnx_and_back() -> None:
    command = [sys.executable, str(EXAMPLES / "onnx_roundtrip.py"), "--steps", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("onnxruntime: equal bit for bit") == 1
    assert done.stdout.count("onnxruntime: relative error") == 2
    assert "read back: 2 packed layers, codes equal" in done.stdout
