"""Who may ask, and from where."""

import dataclasses

import pytest

pytest.importorskip("tests.serve.servers")

from starlette.datastructures import Headers

from bittorch.serve.errors import ApiError
from bittorch.serve.guard import Guard
from bittorch.serve.options import Options
from tests.serve.servers import OPTIONS


def status(options: Options, open_to_all: bool = False, **headers: str) -> int:
    try:
        Guard(options).check(Headers({"host": "127.0.0.1:8000", **headers}), open_to_all)
    except ApiError as error:
        return error.status
    return 200


def test_a_key() -> None:
    keyed = dataclasses.replace(OPTIONS, api_key="s3cret")
    assert status(keyed, authorization="Bearer s3cret") == 200
    for wrong in ("Bearer s3cre", "Bearer s3crett", "Basic s3cret", "s3cret", "Bearer \xe9", ""):
        assert status(keyed, authorization=wrong) == 401
    assert status(keyed) == 401
    assert status(keyed, open_to_all=True) == 200


def test_pages_of_other_addresses() -> None:
    assert status(OPTIONS, origin="http://127.0.0.1:8000") == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "http://[", ""):
        assert status(OPTIONS, origin=origin) == 403
    named = dataclasses.replace(OPTIONS, origins=("https://example.org",))
    assert status(named, origin="https://example.org") == 200


def test_a_name_that_leads_here_is_not_ours() -> None:
    for host in ("localhost", "localhost:8000", "[::1]:8000", "127.0.0.1"):
        assert status(OPTIONS, host=host) == 200
    for host in ("evil.example:8000", "", "[", "127.0.0.1.evil.example"):
        assert status(OPTIONS, host=host) == 403
    away = dataclasses.replace(OPTIONS, host="0.0.0.0", api_key="k")
    assert status(away, host="model.example", authorization="bearer k") == 200


def test_a_server_for_other_machines_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ValueError, match="which needs an api_key"):
            Options("m", host=host)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert Options("m", host=host).local


def test_options_out_of_range() -> None:
    for wrong in ({"slots": 0}, {"port": 70000}, {"step_tokens": 8}, {"seconds": 0}, {"queue": True}, {"name": ""}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options(**{"name": "m", **wrong})
    for key in ("", " ", "é", " k", "k\t", "k\nl", "k\x00"):  # which no header can bring
        with pytest.raises(ValueError, match="api_key"):
            Options("m", api_key=key)
    assert Options("m", api_key="two words").api_key == "two words"
    assert "s3cret" not in repr(Options("m", api_key="s3cret"))
