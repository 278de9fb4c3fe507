"""The chat page: nothing of it comes from elsewhere, and its policy lets its own script run."""

import base64
import hashlib
import re

import pytest

pytest.importorskip("tests.serve.servers")

from tests.serve.servers import Running


def test_the_page_loads_nothing_and_runs_its_own_script_alone(server: Running) -> None:
    answer = server.ask("/", method="GET")
    text = answer.body.decode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?:|src=|href=|url\(|@import|import\(|innerHTML|eval", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';")
    used = set(re.findall(r'at\("([\w-]+)"\)', script))
    assert used == set(re.findall(r'id="([\w-]+)"', text))
