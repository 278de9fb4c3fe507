"""Files that other programs run, by their linters: workflows, the Dockerfile, scripts of the shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.common import ROOT

FILES = {
    "actionlint": (".github/workflows/*.yml",),
    "hadolint": ("packaging/docker/Dockerfile",),
    "shellcheck": (".ci/run", "packaging/jetson/install.sh"),
}


def _program(name: str) -> str | None:
    """Of this environment, where requirements.txt brings it, or of the system."""
    own = Path(sys.executable).parent / name
    return str(own) if own.exists() else shutil.which(name)


@pytest.mark.parametrize("name", FILES)
def test_a_linter_finds_nothing(name: str) -> None:
    files = [path for pattern in FILES[name] for path in ROOT.glob(pattern)]
    if not files:
        pytest.skip("a source distribution has the package's files alone")
    program = _program(name)
    if program is None:
        pytest.skip(f"no {name}, which requirements.txt brings on x86-64 Linux")
    done = subprocess.run([program, *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_tests_each_torch_that_has_a_shim() -> None:
    workflow = ROOT / ".github" / "workflows" / "wheels.yml"
    if not workflow.exists():
        pytest.skip("a source distribution has no workflows")
    text = workflow.read_text()
    shims = text.split("TORCHES: ")[1].split(" #")[0].split()
    tested = ", ".join(f'"{version}"' for version in shims)
    assert f"torch: [{tested}]" in text
    assert len({version.split(".")[1] for version in shims}) == len(shims)
