"""`bittorch chat`: a conversation, on a terminal or through pipes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bittorch.cli.answer import (
    Answer,
    Interrupted,
    chat_tokens,
    check_text,
    generate,
    has_template,
)
from bittorch.cli.arguments import generation_config, model_options, output_options, sampling_options, utf8_text
from bittorch.cli.console import Console
from bittorch.cli.conversation import Conversation
from bittorch.cli.errors import CommandError, one_line
from bittorch.cli.line_editing import line_editing
from bittorch.cli.model import load

if TYPE_CHECKING:
    from bittorch.models import GenerationConfig, LanguageModel

PROMPT = "> "
ANSWER_TOKENS = 512
CONTEXT = 8192  # tokens, where the model has more and --context says nothing: keys and values take memory
HELP = """/help          this text
/system TEXT   what the model should be; without TEXT the model's own default again
/reset         forget the conversation
/save FILE     write the conversation, as JSON
/load FILE     go on with a conversation that was saved
/stats         tokens, times and memory of the last answer
/exit          leave, as Ctrl-D does
//TEXT         say /TEXT to the model
Tab completes commands and names of files, Ctrl-C stops an answer."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk to a model",
        description="A conversation; /help lists what can be typed besides messages.",
        parents=[model_options(), sampling_options(), output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("--system", type=utf8_text, metavar="TEXT", help="what the model should be")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    config = generation_config(args, max_new_tokens=ANSWER_TOKENS)
    model = load(args, console)
    if not has_template(model):
        raise CommandError("the model has no chat template; bittorch run --raw continues texts")
    interactive = sys.stdin.isatty() and not args.json
    chat = Chat(model, config, console, Conversation(args.system), interactive)
    if interactive:
        console.note("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
    with line_editing(interactive, chat.commands):
        chat.talk(lambda: _read(interactive))
    return 0


class Chat:
    """The state of a conversation with a model, and what a typed line does to it.

    Args:
        model: with a chat template.
        config: how to generate.
        console: where answers go.
        conversation: so far.
        interactive: Ctrl-C does not end the program even between answers.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: GenerationConfig,
        console: Console,
        conversation: Conversation,
        interactive: bool = False,
    ) -> None:
        self.model, self.config, self.console = model, config, console
        self.conversation, self.interactive = conversation, interactive
        from bittorch.models import PrefixCache

        most = model.config.max_positions
        self.context = min(most, CONTEXT if config.context is None else config.context)
        self.prefix = PrefixCache(model.new_cache(1, self.context))
        self.last: Answer | None = None
        self.commands: dict[str, Callable[[str], bool]] = {
            "help": self._help,
            "system": self._system,
            "reset": self._reset,
            "save": self._save,
            "load": self._load,
            "stats": self._stats,
            "exit": lambda rest: False,
            "quit": lambda rest: False,
        }

    def talk(self, read: Callable[[], str]) -> None:
        """Takes lines until one says to leave or there are none left; no mistake in a line ends the program."""
        while True:
            try:
                if not self.take(read()):
                    return
            except EOFError:
                return
            except KeyboardInterrupt:  # while a line was typed, or a message made ready
                if not self.interactive:
                    raise
                self.console.write("\n")
                self.console.note("Ctrl-D or /exit leaves")
            except BrokenPipeError:
                raise
            except (CommandError, ValueError, OSError, RuntimeError, ArithmeticError) as error:
                self.console.error(one_line(error))
                self.console.object({"type": "error", "error": one_line(error)})

    def take(self, line: str) -> bool:
        """Does what one line says. Returns False when it says to leave."""
        line = line.strip()
        if not line:
            return True
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            if name not in self.commands:
                raise CommandError(f"there is no /{name}; /help lists what there is")
            return self.commands[name](rest.strip())
        self.say(line[1:] if line.startswith("//") else line)
        return True

    def say(self, text: str) -> None:
        """A message of the user and the model's answer; a failure takes the message back."""
        check_text(text, "the message")
        before = list(self.conversation.messages)
        self.conversation.add("user", text)
        try:
            answer = self._answer()
        except BaseException:
            self.conversation.messages = before
            raise
        if answer.text or answer.finish_reason != "interrupted":
            self.conversation.add("assistant", answer.text)
        else:
            self.conversation.messages = before
        self.last = answer
        self.console.object({"type": "answer", **answer.object()})

    def _answer(self) -> Answer:
        room = self.context - min(self.config.max_new_tokens, self.context // 2)
        tokens, dropped = self.conversation.fit(lambda messages: chat_tokens(self.model, messages), room)
        if dropped:
            self.console.note(f"the oldest {dropped} messages no longer fit and are forgotten")
        try:
            answer = generate(self.model, tokens, self.config, self.console.write, self.prefix, self.console.waiting)
        except Interrupted as stopped:
            answer = stopped.answer
        self.console.line()
        if answer.finish_reason == "interrupted":
            self.console.note("stopped")
        elif answer.finish_reason == "length":
            self.console.note(f"the answer was cut at --max-new-tokens {self.config.max_new_tokens}")
        return answer

    def _done(self, what: str, **values: Any) -> bool:
        self.console.note(what)
        self.console.object({"type": "done", "text": what, **values})
        return True

    def _help(self, rest: str) -> bool:
        self.console.line(HELP)
        self.console.object({"type": "help", "text": HELP})
        return True

    def _system(self, rest: str) -> bool:
        if rest:
            check_text(rest, "the system text")
        self.conversation.system = rest or None
        return self._done("system text set" if rest else "system text taken away")

    def _reset(self, rest: str) -> bool:
        self.conversation.messages, self.last = [], None
        return self._done("the conversation is forgotten")

    def _save(self, rest: str) -> bool:
        path = _path(rest, "/save")
        self.conversation.save(path)
        return self._done(f"{len(self.conversation.messages)} messages written to {path}", path=str(path))

    def _load(self, rest: str) -> bool:
        path = _path(rest, "/load")
        self.conversation = Conversation.load(path)
        return self._done(f"{len(self.conversation.messages)} messages read from {path}", path=str(path))

    def _stats(self, rest: str) -> bool:
        if self.last is None:
            raise CommandError("there is no answer yet")
        self.console.line(self.last.line())
        self.console.object({"type": "stats", **self.last.figures()})
        return True


def _path(text: str, command: str) -> Path:
    if not text:
        raise CommandError(f"{command} needs the name of a file")
    return Path(text).expanduser()


def _read(interactive: bool) -> str:
    """The next line. Raises EOFError at the end of input, CommandError for bytes that are no UTF-8."""
    if interactive:
        return input(PROMPT)
    data = sys.stdin.buffer.readline()
    if not data:
        raise EOFError
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CommandError(f"a line is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None
