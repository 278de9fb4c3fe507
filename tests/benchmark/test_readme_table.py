"""The speed tables of README and docs/notes/benchmarks.md are those of the records, so that the pages cannot differ."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and "→" in line]


@pytest.fixture(scope="module")
def printed() -> str:
    script = str(ROOT / "benchmark" / "readme_table.py")
    done = subprocess.run([sys.executable, script, "--print"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_docs_hold_the_tables_of_the_records(printed: str) -> None:
    page = (ROOT / "docs" / "notes" / "benchmarks.md").read_text()
    assert page.split(BEGIN)[1].split(END)[0].strip() == printed.strip()


# FIELD N6: README and docs/notes/benchmarks.md gave other times for one layer.
def test_every_speed_of_the_readme_stands_in_the_docs(printed: str) -> None:
    shown = _rows((ROOT / "README.md").read_text().split(BEGIN)[1].split(END)[0])
    assert len(shown) == 1 + 5
    assert set(shown) <= set(_rows(printed))
