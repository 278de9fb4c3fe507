"""The options of `bittorch serve`; tests/serve asks the server."""

import os
from pathlib import Path
from typing import Any

import pytest

from bittorch.cli import serve as serve_command
from bittorch.cli.program import make_parser
from tests.cli import tiny_model
from tests.cli.conftest import Command

pytest.importorskip("uvicorn", reason="bittorch serve needs bittorch[serve]")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of services that were about to run."""
    options: list[Any] = []

    def run(service: Any, listening: Any) -> None:
        options.append(service.options)
        listening("http://127.0.0.1:1")

    monkeypatch.setattr("bittorch.serve.server.run", run)
    return options


def test_what_is_said_and_what_the_model_says(bittorch: Command, tmp_path: Path, served: list[Any]) -> None:
    model = tiny_model.make(tmp_path / "small")
    (tmp_path / "key").write_text("s3cret\n")
    (model / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "top_k": null, "max_length": 5}')
    result = bittorch("serve", model, "--slots", 2, "--api-key-file", tmp_path / "key", "--top-p", 0.5)
    assert result.code == 0
    assert "serving small at http://127.0.0.1:1/v1" in result.err
    (options,) = served
    assert (options.name, options.slots, options.context, options.api_key) == ("small", 2, 256, "s3cret")
    assert options.sampling == {"temperature": 0.6, "top_p": 0.5}
    assert "s3cret" not in result.err + result.out


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs descriptors as files")
def test_a_key_from_a_pipe_is_read_once(bittorch: Command, model: Path, served: list[Any]) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"s3cret\n")
        os.close(writer)
        assert bittorch("serve", model, "--api-key-file", f"/dev/fd/{reader}").code == 0
    finally:
        os.close(reader)
    assert served[0].api_key == "s3cret"


def test_refusals(bittorch: Command, model: Path, served: list[Any], tmp_path: Path) -> None:
    for arguments, text in (
        ((model, "--model", model), "MODEL and --model"),
        ((model, "--host", "0.0.0.0"), "needs an --api-key"),
        ((model, "--slots", 0), "--slots must be an integer of at least 1, got 0"),
        ((model, "--temperature", -1), "temperature must be a finite number"),
        ((model, "--step-tokens", 8), "--step-tokens must be"),
        ((model, "--api-key", "a", "--api-key-file", "b"), "two keys"),
    ):
        result = bittorch("serve", *arguments)
        assert result.code == 2, arguments
        assert text in result.err
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff")
    result = bittorch("serve", model, "--api-key-file", tmp_path / "bytes")
    assert f"{tmp_path / 'bytes'} is not UTF-8" in result.err
    assert "has no key" in bittorch("serve", model, "--api-key-file", tmp_path / "empty").err
    assert "context is 1000, the model has 256" in bittorch("serve", model, "--context", 1000).err
    assert served == []


def test_every_option_of_the_server_has_one() -> None:
    parser = make_parser().parse_args(["serve", "m"])
    assert parser.execute is serve_command.execute
    fields = {field for field, *_ in serve_command.FIELDS}
    assert fields | {"origins", "sampling"} == set(serve_command.Options.__dataclass_fields__)
