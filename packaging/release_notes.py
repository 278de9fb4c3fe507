"""Prints what CHANGELOG.md says of a version, for the page of its release.

    python packaging/release_notes.py v0.1.0

The tag has to be the version of the package, and its heading in the CHANGELOG a date: `## 0.1.0 (2027-01-31)`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notes(tag: str, version: str, changelog: str) -> str:
    """The section of a version without its heading.

    Raises:
        ValueError: the tag is of another version, or the section is missing, without a date or empty.
    """
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, and bittorch/_version.py says {version}; its tag is v{version}")
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", changelog, re.M | re.S))
    found = [heading for heading in sections if heading.split()[0] == version]
    if not found:
        raise ValueError(f"CHANGELOG.md has no section {version}; it has {', '.join(sections) or 'none'}")
    if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", found[0]):
        raise ValueError(f"the heading in CHANGELOG.md is {found[0]!r}; a release wants '{version} (YYYY-MM-DD)'")
    text = sections[found[0]].strip()
    if not text:
        raise ValueError(f"the section {found[0]} of CHANGELOG.md is empty")
    return text


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: release_notes.py TAG", file=sys.stderr)
        return 2
    version = re.search(r'"(.+)"', (ROOT / "bittorch" / "_version.py").read_text())
    assert version
    try:
        print(notes(arguments[0], version[1], (ROOT / "CHANGELOG.md").read_text()))
    except ValueError as error:
        print(f"release: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
