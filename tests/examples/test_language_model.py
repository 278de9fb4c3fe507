"""examples/language_model.py as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from tests.models import tiny
from tests.models.vocabularies import byte_tokenizer

SCRIPT = Path(__file__).parents[2] / "examples" / "language_model.py"


def run(*arguments: object) -> str:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_model_answers_and_a_saved_one_answers_alike(tmp_path: Path) -> None:
    model = tiny.model(ternary=False, depth=None)
    model.tokenizer = byte_tokenizer()
    model.save_pretrained(tmp_path / "dense")
    text = run(tmp_path / "dense", "--prompt", "any", "--tokens", 9, "--depth", 3, "--save", tmp_path / "packed")
    assert "[length: 2 + 9 tokens, first after" in text
    answer = text.split("\n", 1)[1].split("[length")[0]
    assert run(tmp_path / "packed", "--prompt", "any", "--tokens", 9).split("[length")[0] == answer
