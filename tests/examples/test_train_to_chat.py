"""examples/train_to_chat.py as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

SCRIPT = Path(__file__).parents[2] / "examples" / "train_to_chat.py"


# FIELD N3
@pytest.mark.slow
def test_every_way_out_is_the_trained_model(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("own", "model.gguf", "bitnet", "masters"):
        assert f"{name}: logits equal; What colour is the sky? The sky is blue." in lines
    chat = [sys.executable, "-m", "bittorch", "run", "--model", str(tmp_path / "out" / "own"), "Who are you?"]
    answer = subprocess.run(chat, capture_output=True, text=True, check=False, timeout=600)
    assert "I am a ternary model." in answer.stdout, answer.stderr
