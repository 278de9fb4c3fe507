"""`bittorch convert`: a checkpoint in another format, read back and compared before it has its name."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from bittorch.cli.arguments import DTYPES, output_options
from bittorch.cli.console import Console, size_text
from bittorch.cli.errors import CommandError
from bittorch.models.io import TARGETS

EXACT = "every trit and scale reads back as it was"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint in another format",
        description="Writes SRC as DST in another format. What is written is read back and compared with SRC, trits "
        "and scales, before DST has its name; a failure leaves DST as it was.",
        parents=[output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="a directory with config.json, or a GGUF file")
    parser.add_argument("target", metavar="DST", help="a directory, or a file for the GGUF formats")
    parser.add_argument("--to", required=True, choices=TARGETS, metavar="FORMAT", help=", ".join(TARGETS))
    parser.add_argument("--depth", type=int, metavar="D", help="convert dense layers to D planes of trits first")
    parser.add_argument("--group-size", type=int, metavar="G", help="columns that share a scale in these planes")
    parser.add_argument("--allow-lossy", action="store_true", help="write although values change, and say by how much")
    parser.add_argument("--dense-dtype", choices=DTYPES, default="auto", help="of what is not ternary; default its own")
    parser.add_argument("--overwrite", action="store_true", help="replace DST, once the new one is whole")
    parser.add_argument("--i2-s-layout", default="128x32", help="of I2_S tensors that are read; default 128x32")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    from bittorch.models.io import convert

    if not Path(args.source).exists():
        raise CommandError(f"no checkpoint at {args.source}")
    with console.progress("tensors") as progress:
        report = convert(
            args.source,
            args.target,
            to=args.to,
            progress=lambda done, total, name: progress(done, total),
            allow_lossy=args.allow_lossy,
            dense_dtype=None if args.dense_dtype == "auto" else getattr(torch, args.dense_dtype),
            overwrite=args.overwrite,
            i2_s_layout=args.i2_s_layout,
        )
    console.object({**dataclasses.asdict(report), "to": args.to, "exact": report.scale_error == 0})
    said = EXACT if report.scale_error == 0 else f"scales changed by up to {report.scale_error:.1e}"
    console.line(
        f"{report.path}: {size_text(report.bytes)}, {report.ternary} of {report.tensors} tensors ternary; {said}"
    )
    return 0
