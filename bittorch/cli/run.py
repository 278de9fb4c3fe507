"""`bittorch run`: one prompt, one answer."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bittorch.cli.answer import Interrupted, check_text, generate, prompt_tokens
from bittorch.cli.arguments import generation_config, model_options, output_options, sampling_options, utf8_text
from bittorch.cli.console import Console
from bittorch.cli.files import decode
from bittorch.cli.model import load


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="answer one prompt",
        description="Answers one prompt and streams the answer to stdout.",
        parents=[model_options(), sampling_options(), output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("prompt", type=utf8_text, help="the prompt; - reads it from stdin")
    parser.add_argument("--system", type=utf8_text, metavar="TEXT", help="what the model should be")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without a chat template")
    parser.add_argument("--stats", action="store_true", help="print tokens, times and memory to stderr at the end")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    config = generation_config(args)
    prompt = decode(sys.stdin.buffer.read(), "stdin").rstrip("\n") if args.prompt == "-" else args.prompt
    check_text(prompt)
    model = load(args, console)
    tokens = prompt_tokens(model, prompt, system=args.system, raw=args.raw)
    try:
        answer = generate(model, tokens, config, console.write, waiting=console.waiting)
    except Interrupted as stopped:
        console.line()
        console.object(stopped.answer.object())
        raise
    console.line()
    console.object(answer.object())
    if answer.finish_reason == "length":
        console.note(f"the answer was cut at --max-new-tokens {config.max_new_tokens}")
    if args.stats:
        console.note(answer.line())
    return 0
