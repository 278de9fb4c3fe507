"""`bittorch eval`: how well a model predicts a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bittorch.cli.arguments import model_options, output_options
from bittorch.cli.console import Console
from bittorch.cli.errors import CommandError, UsageError
from bittorch.cli.files import read_text
from bittorch.cli.model import load


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("eval", help="measure a model's quality: eval ppl FILE", allow_abbrev=False)
    measures = parser.add_subparsers(dest="measure", metavar="MEASURE", required=True)
    ppl = measures.add_parser(
        "ppl",
        help="perplexity of a text",
        description="Perplexity of a text file by the strided window: every token is predicted once, with at least "
        "window - stride tokens before it (the first ones with what there is).",
        parents=[model_options(), output_options()],
        allow_abbrev=False,
    )
    ppl.add_argument("file", metavar="FILE", help="a text in UTF-8")
    ppl.add_argument("--window", type=int, metavar="N", help="tokens that the model sees; default 1024 or its context")
    ppl.add_argument("--stride", type=int, metavar="N", help="tokens predicted in each window; default half of it")
    ppl.add_argument("--max-bytes", type=int, metavar="N", help="only the beginning of the file, in whole characters")
    ppl.set_defaults(execute=perplexity)


def perplexity(args: argparse.Namespace, console: Console) -> int:
    from bittorch.models.perplexity import perplexity as measure

    for name, least in (("window", 2), ("stride", 1), ("max_bytes", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if None not in (args.window, args.stride) and args.stride > args.window:
        raise UsageError(f"--stride must be at most --window {args.window}, got {args.stride}")
    text = read_text(Path(args.file))
    if args.max_bytes is not None:
        text = text.encode()[: args.max_bytes].decode(errors="ignore")
    if not text.strip():
        raise CommandError(f"{args.file} has no text")
    model = load(args, console)
    context = model.config.max_positions
    if args.window is not None and args.window > context:
        raise UsageError(f"--window must be at most the model's context of {context}, got {args.window}")
    with console.progress("tokens") as progress:
        result = measure(
            model,
            text,
            window=args.window,
            stride=args.stride,
            progress=lambda done, total, value: progress(done, total),
        )
    console.object(
        {
            "perplexity": result.value,
            "nats_per_token": result.nll / result.tokens,
            "tokens": result.tokens,
            "bytes": len(text.encode()),
            "window": result.window,
            "stride": result.stride,
        }
    )
    console.line(f"perplexity {result.value:.4f}")
    console.line(f"{result.tokens} tokens, {len(text.encode())} bytes, window {result.window}, stride {result.stride}")
    return 0
