"""`bittorch convert`: a checkpoint in another format, read back and compared before it has its name."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bittorch.cli.arguments import DTYPES, output_options, reading, reading_options
from bittorch.cli.console import Console, size_text
from bittorch.cli.errors import CommandError, UsageError
from bittorch.cli.files import read_text
from bittorch.models.io import TARGETS
from bittorch.models.io.conversion import check_target

if TYPE_CHECKING:
    from bittorch.models import LanguageModel
    from bittorch.models.io import Report

OWN = "bittorch"
CALIBRATING = ("windows", "window", "state")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint in another format",
        description="Writes SRC as DST in another format. What is written is read back and compared with SRC, trits "
        "and scales, before DST has its name; a failure leaves DST as it was.",
        parents=[reading_options(), output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="a directory with config.json, or a GGUF file")
    parser.add_argument("target", metavar="DST", help="a directory, or a file for the GGUF formats")
    parser.add_argument("--to", required=True, choices=TARGETS, metavar="FORMAT", help=", ".join(TARGETS))
    parser.add_argument("--allow-lossy", action="store_true", help="write although values change, and say by how much")
    parser.add_argument("--allow-dense", action="store_true", help="write although no tensor is ternary")
    parser.add_argument("--dense-dtype", choices=DTYPES, default="auto", help="of what is not ternary; default its own")
    parser.add_argument("--overwrite", action="store_true", help="replace DST, once the new one is whole")
    planes = parser.add_argument_group("planes of trits", "make a dense model ternary first, for --to bittorch")
    planes.add_argument("--depth", type=int, metavar="D", help="planes of each dense layer, 1 to 6")
    planes.add_argument(
        "--group-size", type=int, metavar="G", help="columns that share a scale; 0 for one scale per row"
    )
    planes.add_argument("--head-depth", type=int, metavar="D", help="planes of the language-model head")
    looking = parser.add_argument_group("calibration", "choose the planes by what the model does with a text")
    looking.add_argument(
        "--calibrate", metavar="FILE", help="a text in UTF-8 such as the model is to read; with --depth"
    )
    looking.add_argument("--windows", type=int, metavar="N", help="at even distances over the text; default 32")
    looking.add_argument("--window", type=int, metavar="N", help="tokens of each; default 512, or the model's context")
    about = "a folder that keeps the layers that are done, and from which an ended conversion goes on; default "
    looking.add_argument("--state", metavar="DIR", help=f"{about}DST.calibration, which is removed at the end")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    if not Path(args.source).exists():
        raise CommandError(f"no checkpoint at {args.source}")
    check_target(args.target, to=args.to, overwrite=args.overwrite)  # before the work, not after it
    if args.calibrate is None and (given := [name for name in CALIBRATING if getattr(args, name) is not None]):
        raise UsageError(f"--{given[0]} goes with --calibrate FILE")
    by_planes = any(value is not None for value in (args.calibrate, args.depth, args.group_size, args.head_depth))
    report = (_as_planes if by_planes else _convert)(args, console)
    counts = {"bytes": report.bytes, "tensors": report.tensors, "ternary": report.ternary}
    error = report.scale_error
    console.object({"path": args.target, "to": args.to, **counts, "scale_error": error})
    if not report.ternary:
        console.note("no tensor of SRC is ternary")
    console.line(
        f"{args.target}: {size_text(report.bytes)}, {report.ternary} of {report.tensors} tensors ternary; "
        + (f"scales changed by up to {error:.1e}, relative" if error else "reads back as it was")
    )
    return 0


def _convert(args: argparse.Namespace, console: Console) -> Report:
    from bittorch.models.io import open_checkpoint, save

    with open_checkpoint(args.source, **reading(args)) as source:
        if not args.allow_dense and not any(source.info(name).ternary for name in source.names):
            raise CommandError(
                f"no tensor of {args.source} is ternary, so {args.to} would be dense, at its size or larger; with "
                "--to bittorch, --depth makes its layers ternary; --allow-dense writes it as it is"
            )
        with console.progress("tensors") as progress:
            return save(
                source,
                args.target,
                to=args.to,
                progress=lambda done, total, name: progress(done, total),
                allow_lossy=args.allow_lossy,
                dense_dtype=None if args.dense_dtype == "auto" else getattr(torch, args.dense_dtype),
                overwrite=args.overwrite,
            )


def _as_planes(args: argparse.Namespace, console: Console) -> Report:
    from bittorch.models import LanguageModel, LoadOptions
    from bittorch.models.io import open_checkpoint
    from bittorch.models.save import save_model

    if args.to != OWN:
        raise UsageError(f"planes of trits are written --to {OWN} alone, got --to {args.to}")
    if args.calibrate is not None and args.depth is None:
        raise UsageError("--calibrate chooses the planes of the layers; give --depth too")
    dtype = None if args.dense_dtype == "auto" else getattr(torch, args.dense_dtype)
    depth, group_size = args.depth, args.group_size
    try:
        options = LoadOptions(dtype=dtype, depth=depth, group_size=group_size, head_depth=args.head_depth)
        if args.calibrate is not None:  # layers stay dense at first
            head_groups = None if args.head_depth is None else group_size
            options = dataclasses.replace(options, depth=None, group_size=head_groups)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    with open_checkpoint(args.source, **reading(args)) as source:
        model = LanguageModel.from_checkpoint(source, options, tokenizer=args.calibrate is not None)
        state = None if args.calibrate is None else _calibrate(model, args, console)
        with console.progress("tensors") as progress:
            report = save_model(
                model,
                source.tokenizer_source,
                Path(args.target),
                overwrite=args.overwrite,
                progress=lambda done, total, name: progress(done, total),
            )
    if state is not None and args.state is None:
        shutil.rmtree(state)
    return report


def _calibrate(model: LanguageModel, args: argparse.Namespace, console: Console) -> Path:
    """Converts the layers of a dense model; the folder that holds what is done."""
    from bittorch import Calibration
    from bittorch.models.calibrate import LENGTH, WINDOWS, calibrate_, text_windows

    state = Path(args.state or f"{str(args.target).rstrip('/')}.calibration")
    if model.tokenizer is None:
        raise CommandError(f"{args.source} has no tokenizer for the text of --calibrate; name one with --tokenizer")
    length = min(LENGTH, model.config.max_positions) if args.window is None else args.window
    count = WINDOWS if args.windows is None else args.windows
    try:
        windows = text_windows(model, read_text(Path(args.calibrate)), count, length)
    except ValueError as error:
        raise CommandError(f"{args.calibrate}: {error}") from None
    tokens = sum(map(torch.Tensor.numel, windows))
    fewer = f"; the text has no more for {count} of {length}" if tokens < count * length else ""
    console.note(f"calibrating with {tokens} tokens in {len(windows)} windows{fewer}; what is done is kept in {state}")
    with console.progress("layers") as progress:
        how = Calibration(windows, state=state, progress=lambda done, total, name: progress(done, total))
        calibrate_(model, how, depth=args.depth, group_size=args.group_size)
    return state
