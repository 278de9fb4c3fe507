"""The README's code prints what the README says it prints."""

import contextlib
import io
import re
from pathlib import Path

CONVERSION = Path(__file__).parents[1] / "docs" / "conversion.md"
README = (Path(__file__).parents[1] / "README.md").read_text()


def test_readme_snippet_prints_its_output() -> None:
    code, output = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.S).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == output


def test_conversion_guide_runs() -> None:  # FIELD N16
    code = re.search(r"```python\n(.*?)```", CONVERSION.read_text(), re.S)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, CONVERSION.name, "exec"), {})
    lines = printed.getvalue().splitlines()
    assert lines[0].startswith("2 layers became ternary; ternary are 16,384 of ")
    assert lines[-1] == "[('0', '1'), ('3', '4')]"
