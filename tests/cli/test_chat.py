"""`bittorch chat`: through pipes in this process, and on a terminal of its own."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bittorch.models import LanguageModel
from tests.cli import tiny_model
from tests.cli.conftest import Command, command
from tests.helpers import take_ctrl_c

FEW = ("--max-new-tokens", 8, "--ignore-eos")


def test_chat_answers_with_the_whole_conversation(bittorch: Command, model: Path) -> None:
    language_model = LanguageModel.from_pretrained(model)
    messages = [{"role": "system", "content": "be brief"}]
    expected = []
    for question in ("one", "two"):
        messages.append({"role": "user", "content": question})
        tokens = language_model.tokenizer.encode_chat(messages)
        expected += language_model.generate([tokens], max_new_tokens=8, ignore_eos=True)
        messages.append({"role": "assistant", "content": expected[-1]})
    result = bittorch("chat", "--model", model, "--system", "be brief", *FEW, stdin="one\ntwo\n")
    assert (result.code, result.out) == (0, expected[0] + "\n" + expected[1] + "\n")


def test_chat_json_is_a_line_for_each_line(bittorch: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    lines = [
        "hi",
        "/stats",
        f"/save {path}",
        "/nothing",
        "/help",
        "/reset",
        "/stats",
        "/system be brief",
        "//slash",
        "/exit",
    ]
    result = bittorch("chat", "--model", model, "--json", *FEW, stdin="\n".join(lines) + "\nafter\n")
    kinds = [line["type"] for line in result.lines]
    assert kinds == ["answer", "stats", "done", "error", "help", "done", "error", "done", "answer"]
    assert result.code == 0
    assert result.lines[1]["new_tokens"] == 8
    plain = bittorch("chat", "--model", model, *FEW, stdin="hi\n")
    assert result.lines[0]["text"] + "\n" == plain.out


def test_chat_saves_loads_and_resets(bittorch: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    first = bittorch("chat", "--model", model, *FEW, "--system", "be brief", stdin=f"one\n/save {path}\ntwo\n")
    saved = json.loads(path.read_text())
    assert saved["system"] == "be brief"
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    again = bittorch("chat", "--model", model, *FEW, stdin=f"/load {path}\ntwo\n")
    assert first.out.endswith(again.out)
    fresh = bittorch("chat", "--model", model, *FEW, "--system", "be brief", stdin="two\n")
    reset = bittorch("chat", "--model", model, *FEW, stdin=f"/load {path}\n/reset\ntwo\n")
    assert reset.out == fresh.out != again.out


def test_a_turn_computes_what_is_new(bittorch: Command, model: Path) -> None:
    lines = bittorch("chat", "--model", model, *FEW, "--json", stdin="one\ntwo\n/stats\n/reset\nthree\n").lines
    first, second, told, _, reset = (line.get("stats", line) for line in lines)
    assert first["kept_tokens"] == 0
    assert second["kept_tokens"] >= first["prompt_tokens"]
    assert told["kept_tokens"] == second["kept_tokens"]
    assert reset["kept_tokens"] == 1  # <|user|>
    rate = (second["prompt_tokens"] - second["kept_tokens"]) / second["time_to_first_token"]
    assert second["prefill_tokens_per_second"] == pytest.approx(rate)


def test_chat_system_changes_and_goes(bittorch: Command, model: Path) -> None:
    def answer(lines: str) -> str:
        return bittorch("chat", "--model", model, *FEW, "--json", stdin=lines).lines[-1]["text"]

    assert answer("/system be brief\none\n") != answer("one\n")
    assert answer("/system be brief\n/system\none\n") == answer("one\n")


def test_chat_survives_every_mistake(bittorch: Command, model: Path, tmp_path: Path) -> None:
    lines = b"\xff\n/load %b\n/save\n/save /nowhere/chat.json\n/frob\n\n   \n%b\nfine\n"
    data = lines % (bytes(tmp_path / "none.json"), b"x" * 400)
    result = bittorch("chat", "--model", model, *FEW, "--json", stdin=data)
    assert result.code == 0
    assert [line["type"] for line in result.lines] == ["error"] * 6 + ["answer"]
    expected = ("byte 0xff at offset 0", "No such file", "needs the name", "/nowhere", "no /frob", "403")
    for line, text in zip(result.lines, expected, strict=False):
        assert text in line["error"]
    assert result.lines[-1]["stats"]["prompt_tokens"] == len("fine") + 3


def test_chat_forgets_the_oldest_when_the_context_is_full(bittorch: Command, model: Path) -> None:
    lines = "".join(f"{'x' * 60}{n}\n" for n in range(5))
    result = bittorch("chat", "--model", model, *FEW, "--json", stdin=lines)
    assert [line["type"] for line in result.lines] == ["answer"] * 5
    assert all(line["stats"]["prompt_tokens"] <= 248 for line in result.lines)
    assert "2 messages no longer fit" in result.err


def test_chat_needs_a_template(bittorch: Command, tmp_path: Path, model: Path) -> None:
    result = bittorch("chat", "--model", tiny_model.make(tmp_path / "plain", template=False), stdin="x\n")
    assert result.code == 1
    assert "no chat template" in result.err


@pytest.mark.parametrize(("pieces", "messages"), [(0, 1), (4, 3)])
def test_chat_keeps_an_answer_that_was_stopped(
    bittorch: Command, model: Path, ctrl_c_after: Callable[[int], None], pieces: int, messages: int
) -> None:
    ctrl_c_after(pieces)
    result = bittorch("chat", "--model", model, *FEW, "--json", stdin="one\ntwo\n")
    assert result.code == 0
    assert [line["finish_reason"] for line in result.lines] == ["interrupted", "length"]
    seen = result.lines[1]["stats"]["prompt_tokens"]  # of "two", and of "one" and its answer where there is one
    assert seen == len("two") + 3 if messages == 1 else seen > len("two") + 3 + len("one") + 3


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=take_ctrl_c,
        )
        os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """What was shown since the last call, up to the pattern."""
        limit = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < limit, f"no {pattern!r} in {self.text!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"the program ended with {self.text!r}") from None
        shown, self.text = self.text[: found.end()], self.text[found.end() :]
        return shown

    def interrupt_prompt(self, pattern: str) -> None:
        """Sends Ctrl-C until the program answers: Python misses one that comes just before it waits for a key."""
        for _ in range(30):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.wait_for(pattern, 4)
                return
        raise AssertionError(f"no answer to Ctrl-C: {self.text!r}")

    def end(self) -> int:
        """The exit code; what is shown meanwhile goes to ``text``."""
        limit = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < limit:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    break
        return self.process.wait(10)


@pytest.fixture
def terminal(model: Path) -> Iterator[Terminal]:
    endless = "--max-new-tokens", 10**6, "--ignore-eos"
    opened = Terminal("chat", "--model", model, "--threads", 1, *endless)
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.master)


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("hello\r\n(?s:.){200}")  # an answer without end is under way
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("bittorch: stopped\r\n> ")
    terminal.type("/stats\n")
    terminal.wait_for("8 tokens in, [0-9]+ out.*\r\n> ")
    path = tmp_path / "chat.json"
    terminal.type(f"/save {path}\n")
    terminal.wait_for("2 messages written")
    assert json.loads(path.read_text())["messages"][1]["content"]
    terminal.wait_for("> ")
    terminal.interrupt_prompt("Ctrl-D or /exit leaves\r\n> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    history = tmp_path / "cache" / "bittorch" / "chat_history"
    assert history.read_text().splitlines()[-3:] == ["hello", "/stats", f"/save {path}"]
