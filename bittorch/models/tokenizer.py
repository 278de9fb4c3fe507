"""Text to token numbers and back, whatever file the vocabulary comes from."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bittorch.models.chat_template import ChatTemplate, Message, marked
from bittorch.models.io import Checkpoint, FormatError, choices
from bittorch.models.io.tokenizer_files import size_fault
from bittorch.models.streaming import Detokenizer
from bittorch.utils.replacement import replacing

if TYPE_CHECKING:
    import tokenizers

HARMLESS = "\ue000"  # of private use: no special token begins with it


class _Control(NamedTuple):
    """The special tokens, the characters with which their texts begin, and which of them stands for unknown text."""

    tokens: frozenset[int]
    beginnings: frozenset[str]
    unknown: int | None


class Tokenizer:
    """A vocabulary, its special tokens, and the chat template.

    Args:
        backend: of the tokenizers library. Its truncation and padding are turned off, as in transformers: a text has
            all its tokens and no others.
        special_tokens: ``bos_token``, ``eos_token`` and so on, and their texts.
        eos_token_ids: tokens that end a text or a turn; the ``eos_token`` is one in any case.
        chat_template: a Jinja template, or None.
        more_templates: by name, which go along when the tokenizer is saved.

    Example::

        tokenizer = Tokenizer.from_source(Path("checkpoint"))
        assert tokenizer.decode(tokenizer.encode("Grüße, 世界"), skip_special_tokens=True) == "Grüße, 世界"
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
        more_templates: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_truncation()  # else a text would be cut, or filled up, without a word
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens or {})
        eos = self.token_id(self.special_tokens["eos_token"]) if "eos_token" in self.special_tokens else None
        self.eos_token_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *map(int, eos_token_ids)]))
        self.chat_template = None if chat_template is None else ChatTemplate(chat_template, self.special_tokens)
        self.more_templates = dict(more_templates or {})

    @classmethod
    def from_source(cls, source: Path | str | Mapping[str, Any]) -> Tokenizer:
        """The tokenizer of a checkpoint.

        Args:
            source: a directory with ``tokenizer.json``, or ``tokenizer.model`` (tiktoken ranks of LLaMA 3, or
                SentencePiece); or the ``tokenizer.*`` entries of a GGUF file.

        Raises:
            ImportError: the libraries of the extra ``lm`` are missing.
            FileNotFoundError: the directory has none of these files.
            ValueError: a vocabulary that is damaged, or of a kind that is not read; the message names it.
        """
        try:
            from bittorch.models.tokenizer_files import from_source
        except ImportError as error:
            raise ImportError(f"tokenizers need {error.name}; install bittorch[lm]") from error
        return cls(*from_source(source))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer:
        """The tokenizer of an open checkpoint, with the end tokens that its ``override`` names.

        Warns:
            bittorch.models.io.CheckpointWarning: it has another size than the model; nothing names an end token.

        Raises:
            FormatError: another size, of a tokenizer that the caller named.
            ImportError, FileNotFoundError, ValueError: as `from_source`.
        """
        tokenizer, config = cls.from_source(checkpoint.tokenizer_source), checkpoint.config
        if "eos_token_ids" in checkpoint.override:
            tokenizer.eos_token_ids = config.eos_token_ids
        if fault := size_fault(tokenizer.vocab_size, config.vocab_size):
            if checkpoint.tokenizer_path is not None:
                raise FormatError(f"{checkpoint.tokenizer_path} does not fit {checkpoint.path}: {fault}")
            choices.warn("tokenizer-size", f"{checkpoint.path}: {fault}; tokenizer= names another one, and False none")
        if not (config.eos_token_ids or tokenizer.eos_token_ids):
            choices.warn(
                "no-end-token",
                f"{checkpoint.path} names no token that ends an answer, so that answers end by their length alone; "
                "override={'eos_token_ids': [NUMBER]} names it",
            )
        return tokenizer

    def copy(self) -> Tokenizer:
        """Another of the same, for another thread: one may not encode while another decodes."""
        twin = copy.copy(self)
        twin.backend = copy.deepcopy(self.backend)
        return twin

    @property
    def vocab_size(self) -> int:
        """Tokens, special ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The number of a token by its text in the vocabulary, None where it has none."""
        return self.backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token numbers of a text.

        Args:
            text: any.
            add_special_tokens: the tokens that the model expects around a text, often one at its beginning.
            parse_special: take the text of a special token for that token; False reads it as plain text, which is what
                text from strangers should be.

        Raises:
            ValueError: half of a surrogate pair, which no UTF-8 can hold, and where it stands; a character that the
                vocabulary can neither write nor call unknown.
        """
        return self._encoding(text, add_special_tokens, parse_special).ids

    def _encoding(self, text: str, add_special_tokens: bool, parse_special: bool) -> tokenizers.Encoding:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text has no UTF-8: character {error.start} is {text[error.start]!r}, half of a surrogate pair"
            ) from None
        if self.backend.encode_special_tokens == parse_special:
            self.backend.encode_special_tokens = not parse_special
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as error:
            _raise_panic(error, "encode a text")
            if not isinstance(error, Exception):
                raise
            # The library raises nothing narrower.
            raise ValueError(f"the vocabulary has no tokens for the text: {error}") from None

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token numbers; U+FFFD stands for bytes that are no character."""
        try:
            return self.backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            _raise_panic(error, "decode tokens")
            raise

    def stream(self, *, skip_special_tokens: bool = False) -> Detokenizer:
        """Decodes token by token, in whole characters."""
        return Detokenizer(self, skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **values: Any
    ) -> str:
        """The text of a conversation. See ``ChatTemplate.render``; ValueError where the model has no template."""
        if self.chat_template is None:
            raise ValueError("the tokenizer has no chat template; write the prompt yourself")
        return self.chat_template.render(messages, add_generation_prompt, **values)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        parse_special: bool = False,
        **values: Any,
    ) -> list[int]:
        """Token numbers of a conversation; its template has the special tokens, so none are added.

        Args:
            messages, add_generation_prompt, values: as of `apply_chat_template`.
            parse_special: take the text of a special token in a message for that token, as transformers does. By
                default it is plain text, so that no message can end its turn and go on in another's name.

        Raises:
            ValueError: as `apply_chat_template` and `encode`.
        """
        values["add_generation_prompt"] = add_generation_prompt
        text = self.apply_chat_template(messages, **values)
        as_it_is = self._encoding(text, False, True).ids
        mark = f"{secrets.randbits(128):039d}"  # nothing that a filter of the template changes
        marks = messages if parse_special else [marked(message, self._control.beginnings, mark) for message in messages]
        if marks == messages:
            return as_it_is
        parts = self.apply_chat_template(marks, **values).split(mark)
        if "".join(parts) != text and self._has_own_controls(as_it_is, messages, values):
            return as_it_is
        return self._plain_where_marked(parts)

    def _has_own_controls(self, tokens: Sequence[int], messages: Sequence[Message], values: Mapping[str, Any]) -> bool:
        """Whether the special tokens are those of the template alone, which it has around harmless messages too.

        A template that looks into the messages, at their lengths or beginnings, must not see the marks.
        """
        harmless = [marked(message, self._control.beginnings, HARMLESS, keep=False) for message in messages]
        others = self._encoding(self.apply_chat_template(harmless, **values), False, True).ids
        return self._controls(tokens) == self._controls(others)

    def _plain_where_marked(self, parts: Sequence[str]) -> list[int]:
        """Tokens of a text in parts: where a special token begins between two, its text is plain text."""
        text = "".join(parts)
        encoding = self._encoding(text, False, True)
        begun = set(itertools.accumulate(map(len, parts[:-1])))  # characters of messages that may begin a token
        if not begun:
            return encoding.ids
        tokens: list[int] = []
        for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._control.tokens and not begun.isdisjoint(range(begin, end)):
                plain = self.encode(text[begin:end], add_special_tokens=False, parse_special=False)
                # A unigram vocabulary finds the same token again, which is left out; the unknown one stands for text.
                tokens += [t for t in plain if t not in self._control.tokens or t == self._control.unknown]
            else:
                tokens.append(token)
        return tokens

    def _controls(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token in self._control.tokens and token != self._control.unknown]

    @functools.cached_property
    def _control(self) -> _Control:
        found = {number: token for number, token in self.backend.get_added_tokens_decoder().items() if token.special}
        unknown = self.special_tokens.get("unk_token")
        return _Control(
            frozenset(found),
            frozenset(token.content[0] for token in found.values()),
            None if unknown is None else self.token_id(unknown),
        )

    def save(self, directory: str | Path) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json``, which `from_source` and transformers read."""
        directory = Path(directory)
        values: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special_tokens}
        default = {} if self.chat_template is None else {"default": self.chat_template.source}
        if self.more_templates:
            named = {**default, **self.more_templates}
            values["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
        elif default:
            values["chat_template"] = default["default"]
        if self.eos_token_ids:
            values["eos_token_ids"] = list(self.eos_token_ids)
        _write(directory / "tokenizer.json", self.backend.to_str(pretty=True))
        _write(directory / "tokenizer_config.json", json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def _raise_panic(error: BaseException, what: str) -> None:
    from bittorch.models.tokenizer_files import is_panic

    if is_panic(error):
        raise ValueError(f"the tokenizer is damaged: the tokenizers library failed to {what}: {error}") from None


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with replacing(path, directory=False, overwrite=True) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
