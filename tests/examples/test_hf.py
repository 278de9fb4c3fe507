"""examples/hf_trainer.py and examples/lora_on_packed.py as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

EXAMPLES = Path(__file__).parents[2] / "examples"


def lines(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_trainer_resumes_and_every_folder_is_the_trained_model() -> None:
    found = lines("hf_trainer.py")
    assert "resumed half way: weights equal" in found
    for name in ("masters", "packed", "loaded"):
        assert f"{name}: logits equal" in found
    assert "[3, 5, 7, 9, 11] goes on with [13, 15, 17, 19, 21]" in found


@pytest.mark.slow
def test_adapters_of_a_packed_model() -> None:
    found = lines("lora_on_packed.py")
    for line in (
        "loaded: logits equal",
        "switched off: logits equal to the base",
        "14 adapters of form 'grid' are merged bit for bit",
        "merged: logits equal",
        "PEFT, loaded and merged: logits equal",
    ):
        assert line in found
    percent = [
        float(line.rsplit(" ", 1)[1].rstrip("%")) for line in found if line.startswith(("adapter", "PEFT, adapter"))
    ]
    assert min(percent) > 90
