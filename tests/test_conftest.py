"""What tests/conftest.py promises of a run with BITTORCH_CI=1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPPED_TEST = "import pytest\n\ndef test_skipped():\n    pytest.skip('no tool')\n\ndef test_passed():\n    pass\n"
SKIPPED_FILE = "import pytest\n\npytest.importorskip('no_such_module')\n"


@pytest.mark.parametrize("source", [SKIPPED_TEST, SKIPPED_FILE], ids=["test", "file"])
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
@pytest.mark.slow
def test_a_skip_is_red_in_ci_alone(tmp_path: Path, source: str, workers: tuple[str, ...]) -> None:  # FIELD N1
    (tmp_path / "test_it.py").write_text(source)
    (tmp_path / "test_other.py").write_text("def test_passed():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", os.devnull, *workers]
    for ci, code in (("0", 0), ("1", 1)):
        environment = {**os.environ, "BITTORCH_CI": ci}
        result = subprocess.run(
            [*command, f"--rootdir={tmp_path}", tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert result.returncode == code, result.stdout + result.stderr
        assert ("BITTORCH_CI=1 allows no skip" in result.stdout) == (ci == "1")
