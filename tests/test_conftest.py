"""What tests/conftest.py promises of a run with BITTORCH_CI=1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPPED_TEST = "import pytest\n\ndef test_skipped():\n    pytest.skip('no tool')\n\ndef test_passed():\n    pass\n"
SKIPPED_FILE = "import pytest\n\npytest.importorskip('no_such_module')\n"


@pytest.mark.parametrize(
    ("workers", "ci"), [((), "0"), ((), "1"), (("-n", "1"), "1")], ids=["elsewhere", "alone", "worker"]
)
@pytest.mark.slow
def test_a_skip_is_red_in_ci_alone(tmp_path: Path, workers: tuple[str, ...], ci: str) -> None:  # FIELD N1
    (tmp_path / "test_one.py").write_text(SKIPPED_TEST)
    (tmp_path / "test_file.py").write_text(SKIPPED_FILE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", os.devnull, *workers]
    environment = {**os.environ, "BITTORCH_CI": ci}
    result = subprocess.run(
        [*command, f"--rootdir={tmp_path}", tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == int(ci), result.stdout + result.stderr
    assert "1 passed, 2 skipped" in result.stdout
    listed = result.stdout.partition("BITTORCH_CI=1 allows no skip")[2]
    for line in ("test_one.py::test_skipped: Skipped: no tool", "test_file.py: Skipped: could not import"):
        assert (line in listed) == (ci == "1")
