"""What a chat keeps of a conversation."""

import json
import os
from pathlib import Path

import pytest

from bittorch.cli.conversation import Conversation
from bittorch.cli.errors import CommandError
from tests.cli.conftest import file_size_limit


def _conversation(turns: int) -> Conversation:
    conversation = Conversation("be brief")
    for turn in range(turns):
        conversation.add("user", f"question {turn}")
        conversation.add("assistant", f"answer {turn}\n\ud83d\ude00")
    return conversation


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    saved = _conversation(3)
    saved.messages[1]["content"] = 'Grüße, 世界 \U0001f600 \\ "'
    saved.messages = saved.messages[:2]
    saved.save(tmp_path / "chat.json")
    assert Conversation.load(tmp_path / "chat.json") == saved
    assert "世界" in (tmp_path / "chat.json").read_text()


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"messages": 3},
        {"system": 3, "messages": []},
        {"system": None},
        {"messages": [{"role": "assistant", "content": "first"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        {"messages": [{"role": "user"}]},
        {"messages": ["a"]},
    ],
)
def test_load_refuses_what_save_does_not_write(tmp_path: Path, value: object) -> None:
    (tmp_path / "chat.json").write_text(json.dumps(value))
    with pytest.raises(CommandError, match=r"chat\.json"):
        Conversation.load(tmp_path / "chat.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_load_refuses_what_is_no_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "chat.json").write_bytes(data)
    with pytest.raises(CommandError, match=r"chat\.json is not"):
        Conversation.load(tmp_path / "chat.json")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    _conversation(1).save(tmp_path / "chat.json")
    before = (tmp_path / "chat.json").read_bytes()
    with file_size_limit(100), pytest.raises(OSError, match="too large"):
        _conversation(20).save(tmp_path / "chat.json")
    assert (tmp_path / "chat.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


def test_a_save_that_fails_names_the_file(tmp_path: Path) -> None:  # FIELD N14
    path = tmp_path / "nope" / "x.json"
    with pytest.raises(FileNotFoundError) as caught:
        _conversation(1).save(path)
    assert caught.value.filename == str(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(FileNotFoundError) as caught:
        _conversation(1).save(tmp_path / "link")
    assert caught.value.filename == str(tmp_path / "link")


def test_save_replaces_neither_links_nor_devices(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "chat.json")
    _conversation(1).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(Conversation.load(tmp_path / "chat.json").messages) == 2
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(CommandError, match="no ordinary file"):
            _conversation(1).save(path)
    assert (tmp_path / "pipe").is_fifo()


def test_fit_drops_the_oldest_turns() -> None:
    conversation = _conversation(4)
    conversation.add("user", "last")
    tokens, dropped = conversation.fit(lambda messages: list(range(10 * len(messages))), 65)
    assert dropped == 4
    assert len(tokens) == 60
    assert [message["content"] for message in conversation.messages][::4] == ["question 2", "last"]
    assert conversation.all()[0] == {"role": "system", "content": "be brief"}


def test_fit_refuses_a_message_that_is_too_long_alone() -> None:
    conversation = Conversation()
    conversation.add("user", "long")
    with pytest.raises(CommandError, match=r"has 70 tokens .* 65 fit"):
        conversation.fit(lambda messages: list(range(70)), 65)
    assert len(conversation.messages) == 1
