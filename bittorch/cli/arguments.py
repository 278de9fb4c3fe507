"""Groups of options, each written once for all commands that have it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from bittorch.cli.errors import UsageError
from bittorch.models.config import ACTIVATIONS
from bittorch.models.io.codecs import I2S_LAYOUTS
from bittorch.models.io.exact_ternary import TERNARY
from bittorch.models.io.override import parsed

if TYPE_CHECKING:
    from bittorch.models import GenerationConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
HEADS = ("auto", "int8", "stored")  # of `bittorch.models.load`, which a parser must not import
READING = ("ternary", "i2_s_layout", "hidden_act", "pre_tokenizer", "tokenizer")
ACTIVATION_BITS = ("auto", "8", "16", "24", "none")


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of `GenerationConfig` as an option of the command line."""

    field: str
    type: type
    metavar: str
    help: str


SAMPLING = (
    Option("max_new_tokens", int, "N", "tokens of an answer"),
    Option("temperature", float, "T", "0 takes the likeliest token, higher is more random"),
    Option("top_k", int, "K", "draw from the K likeliest tokens; 0 for all"),
    Option("top_p", float, "P", "draw from the likeliest tokens that have this probability together"),
    Option("typical_p", float, "P", "draw from the most typical tokens that have this probability together"),
    Option("min_p", float, "P", "draw from tokens at least this share as likely as the likeliest"),
    Option("repetition_penalty", float, "R", "above 1 makes tokens of prompt and answer less likely"),
    Option("frequency_penalty", float, "F", "taken from a token's logit for each time that the answer has it"),
    Option("presence_penalty", float, "F", "taken from the logit of every token that the answer has"),
    Option("length_penalty", float, "L", "above 1 makes the end likelier with every token"),
    Option("length_penalty_start", int, "N", "tokens before the length penalty begins"),
    Option("seed", int, "S", "of the draws; the same seed gives the same answer"),
    Option("context", int, "N", "tokens that are attended to; default what the model was trained for"),
    Option("sliding_keep", int, "N", "first tokens that stay when the context slides"),
)


def utf8_text(argument: str) -> str:
    """An argument that is text, read as UTF-8 whatever the locale; bytes that are none stay as Python has them."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def output_options() -> argparse.ArgumentParser:
    """Options of every command."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="results as JSON on stdout, one object or one per line")
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    group.add_argument("--plain", action="store_true", help="do not use rich, even where it is installed")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def model_options() -> argparse.ArgumentParser:
    """Which model, and how it is loaded."""
    parser = argparse.ArgumentParser(add_help=False, parents=[reading_options()])
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        metavar="PATH",
        help="a directory with config.json, or a GGUF file; default SmolLM2-135M-Instruct",
    )
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="of activations and dense layers")
    group.add_argument("--kv-cache", choices=DTYPES, default="auto", help="of keys and values; default that of --dtype")
    group.add_argument("--threads", type=int, metavar="N", help="of the CPU; default torch's own choice")
    group.add_argument(
        "--depth",
        type=int,
        metavar="D",
        help="convert dense layers to D planes of trits, 1 to 6; 0 leaves them dense; default 0, of SmolLM2 4",
    )
    group.add_argument(
        "--group-size",
        type=int,
        metavar="G",
        help="columns that share a scale in these planes; 0 for one scale per row; default 64 up to depth 3, else 0",
    )
    group.add_argument("--head-depth", type=int, metavar="D", help="planes of trits of the language-model head")
    group.add_argument(
        "--head", choices=HEADS, default="auto", help="of a dense head; auto: int8 rows of quantised blocks on a CPU"
    )
    group.add_argument(
        "--activation-bits", choices=ACTIVATION_BITS, default="auto", help="of the ternary layers' inputs"
    )
    return parser


def reading_options() -> argparse.ArgumentParser:
    """What a file may leave open; see `bittorch.models.io.open_checkpoint`."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("what a file leaves open or gets wrong")
    group.add_argument(
        "--override",
        action="append",
        metavar="KEY=VALUE",
        help="a field of the model's configuration, such as rope_theta=1e6 or eos_token_ids=2,7; may be repeated",
    )
    about = "another tokenizer: a directory, tokenizer.json, tokenizer.model or a GGUF file"
    group.add_argument("--tokenizer", metavar="FILE", help=about)
    about = "floats that are exactly trits times scales: packed (auto), floats (never), or an error where some are not"
    group.add_argument("--ternary", choices=TERNARY, help=about)
    group.add_argument("--i2-s-layout", choices=I2S_LAYOUTS, help="order of weights in I2_S tensors; default 128x32")
    group.add_argument("--hidden-act", choices=ACTIVATIONS, help="activation of the MLP; default what the file says")
    group.add_argument("--pre-tokenizer", metavar="NAME", help="how text is cut into words, such as llama-bpe")
    return parser


def reading(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `reading_options` that were given, as `bittorch.models.io.open_checkpoint` takes them.

    Raises:
        UsageError: no field of a configuration, a value of another type, a field twice.
    """
    override: dict[str, Any] = {}
    for text in args.override or ():
        try:
            key, value = parsed(text)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if key in override:
            raise UsageError(f"--override of {key} stands there twice")
        override[key] = value
    given = {name: getattr(args, name) for name in READING if getattr(args, name) is not None}
    return given | ({"override": override} if override else {})


def as_options(text: str) -> str:
    """A message of the library with the names of the program's options."""
    text = re.sub(r"override=\{'(\w+)': \[?([^\]}]*)\]?\}", r"--override \1=\2", text)
    text = re.sub(rf"\b({'|'.join(READING)}|depth)=", lambda found: f"{flag(found[1])} ", text)
    text = re.sub(
        r"\b(group_size|head_depth|allow_lossy)(=?)", lambda found: flag(found[1]) + " " * bool(found[2]), text
    )
    return re.sub(r"\b([Ss]ay) overwrite\b", r"\1 --overwrite", text)


def flag(name: str) -> str:
    """The option of an argument or a field."""
    return "--" + name.replace("_", "-")


def sampling_options(fields: Collection[str] | None = None) -> argparse.ArgumentParser:
    """The fields of `GenerationConfig`, all or these; what is not given has its default there."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = parser.add_argument_group("generation")
    for option in SAMPLING:
        if fields is None or option.field in fields:
            group.add_argument(flag(option.field), type=option.type, metavar=option.metavar, help=option.help)
    if fields is not None:
        return parser
    stop = "a text that ends the answer; may be repeated"
    group.add_argument("--stop", action="append", type=utf8_text, metavar="TEXT", help=stop)
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end of the text")
    group.add_argument(
        "--overflow", choices=("slide", "stop", "error"), help="what happens where the context is full; default slide"
    )
    group.add_argument(
        "--keep-special-tokens", action="store_false", dest="skip_special_tokens", help="show end tokens and the like"
    )
    return parser


def generation_config(args: argparse.Namespace, **defaults: Any) -> GenerationConfig:
    """What the options say.

    Args:
        args: parsed by a parser with `sampling_options`.
        defaults: of fields for which there was no option.

    Raises:
        UsageError: a value out of its range.
    """
    from bittorch.models import GenerationConfig

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(GenerationConfig) if hasattr(args, f.name)}
    try:
        return GenerationConfig(**{**defaults, **given})
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
