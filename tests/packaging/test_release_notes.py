"""Which part of CHANGELOG.md a release shows, and which tags are refused."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from tests.packaging.common import ROOT

SCRIPT = ROOT / "packaging" / "release_notes.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="an installed package has no packaging/")
CHANGELOG = """# Changelog

## 0.3.0 (unreleased)

- third

## 0.2.0 (2027-01-31)

- second

### More

- of it

## 0.1.0 (2026-12-24)

## 0.1.0rc1 (2026-12-01)

- first
"""


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_the_section_of_the_version_alone(script: dict[str, Any]) -> None:
    assert script["notes"]("v0.2.0", "0.2.0", CHANGELOG) == "- second\n\n### More\n\n- of it"
    assert script["notes"]("v0.1.0rc1", "0.1.0rc1", CHANGELOG) == "- first"


@pytest.mark.parametrize(
    ("tag", "version", "message"),
    [
        ("v0.2.1", "0.2.0", "the tag is v0.2.1, and bittorch/_version.py says 0.2.0; its tag is v0.2.0"),
        ("v0.3.0", "0.3.0", r"is '0\.3\.0 \(unreleased\)'; a release wants '0\.3\.0 \(YYYY-MM-DD\)'"),
        ("v0.1.0", "0.1.0", r"the section 0\.1\.0 \(2026-12-24\) of CHANGELOG\.md is empty"),
        ("v0.2", "0.2", r"CHANGELOG\.md has no section 0\.2; it has "),
        ("v0.4.0", "0.4.0", r"no section 0\.4\.0; it has 0\.3\.0 \(unreleased\), 0\.2\.0"),
    ],
)
def test_a_release_that_is_not_ready_is_refused(script: dict[str, Any], tag: str, version: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        script["notes"](tag, version, CHANGELOG)


def test_the_command_refuses_in_one_line(script: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert script["main"](["v99.0.0"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("release: error: the tag is v99.0.0, and bittorch/_version.py says ")
    assert err.count("\n") == 1
