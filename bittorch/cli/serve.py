"""`bittorch serve`: a model behind OpenAI's API, on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bittorch.cli.arguments import flag, model_options, output_options, sampling_options
from bittorch.cli.console import Console, size_text
from bittorch.cli.default_model import NAME
from bittorch.cli.errors import OK, CommandError, UsageError
from bittorch.cli.files import read_text
from bittorch.cli.model import load
from bittorch.serve.options import SAMPLING, Options

if TYPE_CHECKING:
    from bittorch.models import LanguageModel

# Fields of `bittorch.serve.options.Options`: type, name of the value, what it is.
FIELDS: tuple[tuple[str, type, str, str], ...] = (
    ("name", str, "NAME", "of the model, as requests say it; default that of its file or directory"),
    ("host", str, "ADDRESS", "to listen on; default 127.0.0.1, which this machine alone reaches"),
    ("port", int, "N", "to listen on; default 8000, 0 takes a free one"),
    ("api_key", str, "KEY", "what requests must bring; better --api-key-file: other users see a process's arguments"),
    ("slots", int, "N", "answers that are made at the same time; default 8"),
    ("context", int, "N", "tokens of a prompt and its answer; default the model's, 4096 at most"),
    ("queue", int, "N", "answers that wait for a slot; default 64, beyond them requests are refused"),
    ("chunk", int, "N", "tokens of a prompt that are read at once; default 64"),
    ("step_tokens", int, "N", "most tokens of prompts in a step; default 128"),
    ("choices", int, "N", "most answers to one request; default 8"),
    ("body_bytes", int, "N", "most bytes of a request; default 1048576"),
    ("body_seconds", float, "S", "in which a request must arrive; default 30"),
    ("seconds", float, "S", "from a request to the end of its answer; default 600"),
    ("drain_seconds", float, "S", "for answers under way when the server is to end; default 30"),
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a model by OpenAI's API",
        description="Serves one model by OpenAI's API until Ctrl-C or SIGTERM; answers under way are finished.",
        parents=[model_options(), sampling_options(SAMPLING), output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("path", nargs="?", metavar="MODEL", help="the same as --model")
    group = parser.add_argument_group("server")
    for field, kind, metavar, about in FIELDS:
        group.add_argument(flag(field), type=kind, metavar=metavar, help=about, default=argparse.SUPPRESS)
    group.add_argument("--api-key-file", metavar="FILE", help="a file whose first line is the key")
    origin = "a web page's address that may ask, such as https://example.org; may be repeated"
    group.add_argument("--origin", action="append", default=[], metavar="URL", help=origin)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    if args.path is not None and args.model is not None:
        raise UsageError("MODEL and --model name two models; name one")
    args.model = args.model if args.path is None else args.path
    try:
        from bittorch.serve.server import run
        from bittorch.serve.service import Service
    except ImportError as error:
        raise CommandError(f"bittorch serve needs {error.name}; pip install 'bittorch[serve]'") from None
    said = _options(args)  # what is wrong is told before the model is loaded
    model = load(args, console)
    options = _completed(said, args, model)
    service = Service(model, options)
    memory = size_text(service.scheduler.engine.cache.nbytes)
    console.note(f"{options.slots} slots of {options.context} tokens; their cache takes up to {memory}")

    def listening(url: str) -> None:
        console.note(f"serving {options.name} at {url}/v1; Ctrl-C ends it")
        console.object({"type": "listening", "url": url, "model": options.name})

    run(service, listening)
    return OK


def _options(args: argparse.Namespace) -> Options:
    """What the arguments say. Raises UsageError, and CommandError for a key that cannot be read."""
    given = {field: getattr(args, field) for field, *_ in FIELDS if hasattr(args, field)}
    if args.api_key_file is not None:
        if "api_key" in given:
            raise UsageError("--api-key and --api-key-file name two keys; name one")
        given["api_key"] = _key(Path(args.api_key_file))
    given.setdefault("name", NAME if args.model is None else Path(args.model).resolve().name)
    sampling = {name: getattr(args, name) for name in SAMPLING if hasattr(args, name)}
    try:
        return Options(**given, origins=tuple(args.origin), sampling=sampling)
    except (TypeError, ValueError) as error:
        names = "|".join(field for field, *_ in FIELDS)
        text = re.sub(rf"\b({names})(?= must|$)", lambda found: flag(found[1]), str(error))
        raise UsageError(text) from None


def _completed(options: Options, args: argparse.Namespace, model: LanguageModel) -> Options:
    """With what the model says where the arguments say nothing."""
    context = options.context if hasattr(args, "context") else min(options.context, model.config.max_positions)
    sampling = {"temperature": 1.0, **_recommended(model), **options.sampling}
    return dataclasses.replace(options, context=context, sampling=sampling)


def _recommended(model: LanguageModel) -> dict[str, Any]:
    """How the checkpoint says that its model is to be sampled. Raises CommandError for values out of range."""
    from bittorch.models import GenerationConfig

    said = model.generation_defaults
    values = {name: said[name] for name in SAMPLING if said.get(name) is not None}
    if said.get("do_sample") is False:
        values = {name: value for name, value in values.items() if name == "repetition_penalty"} | {"temperature": 0.0}
    for name, value in values.items():
        try:
            GenerationConfig(**{name: value})
        except (TypeError, ValueError) as error:
            raise CommandError(f"the model's generation_config.json: {error}; {flag(name)} says another") from None
    return values


def _key(path: Path) -> str:
    lines = read_text(path).splitlines()
    if not lines or not lines[0].strip():
        raise CommandError(f"{path} has no key in its first line")
    return lines[0].strip()
