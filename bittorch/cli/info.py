"""`bittorch info`: what a checkpoint holds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bittorch.cli import default_model
from bittorch.cli.arguments import as_options, output_options, reading, reading_options
from bittorch.cli.console import Console, size_text
from bittorch.cli.errors import CommandError

if TYPE_CHECKING:
    from bittorch.models.io import Checkpoint, CheckpointWarning, TensorInfo


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="list a checkpoint's tensors, formats, bytes and bits per weight",
        description="What a checkpoint holds; no tensor is read. Without PATH the GGUF file of SmolLM2-135M-Instruct.",
        parents=[reading_options(), output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("path", nargs="?", metavar="PATH", help="a directory with config.json, or a GGUF file")
    parser.add_argument("--no-tensors", action="store_true", help="sums only")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    from bittorch.models.io import open_checkpoint

    if args.path is None:
        path = default_model.find_gguf()
        console.note(f"no model is named: taking {default_model.NAME}, {path}")
    elif not (path := Path(args.path)).exists():
        raise CommandError(f"no checkpoint at {path}")
    with open_checkpoint(path, **reading(args)) as checkpoint:
        checkpoint.choices += _tokenizer_choices(checkpoint, console)
        tensors = [checkpoint.info(name) for name in checkpoint.names]
        console.object(_object(checkpoint, tensors, not args.no_tensors))
        if not console.json:
            _print(checkpoint, tensors, console, not args.no_tensors)
    return 0


def _tokenizer_choices(checkpoint: Checkpoint, console: Console) -> tuple[CheckpointWarning, ...]:
    """What the tokenizer's files leave open; nothing where there is none, or no library that reads it."""
    from bittorch.models import Tokenizer
    from bittorch.models.io.choices import recorded

    source = checkpoint.tokenizer_source
    if isinstance(source, Mapping) and "tokenizer.ggml.tokens" not in source:
        return ()
    with recorded() as made:
        try:
            Tokenizer.from_checkpoint(checkpoint)
        except (ImportError, FileNotFoundError):
            pass
        except ValueError as error:
            console.note(f"the tokenizer cannot be read: {error}")
    return tuple(made)


def _object(checkpoint: Checkpoint, tensors: Sequence[TensorInfo], each: bool) -> dict[str, Any]:
    import dataclasses

    from bittorch.models.hadamard import to_note

    config = checkpoint.config
    rows = [{**dataclasses.asdict(info), "bits_per_weight": _bits([info])} for info in tensors]
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "config": dataclasses.asdict(config) | {"hadamard": to_note(config.hadamard) if config.hadamard else None},
        "override": dict(checkpoint.override),
        "choices": [{"choice": choice.choice, "message": str(choice)} for choice in checkpoint.choices],
        "weights": _weights(tensors),
        "bytes": sum(info.bytes for info in tensors),
        "bits_per_weight": _bits(tensors),
        "types": {kind: _sums(group) for kind, group in _by_type(tensors).items()},
    } | ({"tensors": rows} if each else {})


def _print(checkpoint: Checkpoint, tensors: Sequence[TensorInfo], console: Console, each: bool) -> None:
    config = checkpoint.config
    console.line(f"{checkpoint.path}")
    console.line(f"format   {checkpoint.format}")
    console.line(
        f"model    {config.architecture}, {config.num_layers} layers, hidden {config.hidden_size}, "
        f"inner {config.intermediate_size}, heads {config.num_heads} / {config.num_kv_heads} of {config.head_dim}, "
        f"vocabulary {config.vocab_size}, "
        f"context {config.max_positions}, {config.hidden_act}" + (", tied embeddings" if config.tie_embeddings else "")
    )
    if config.pooling:
        console.line(f"texts    become one vector by pooling {config.pooling}")
    if config.activation_bits:
        console.line(f"inputs   {config.activation_bits}-bit in ternary layers")
    if config.hadamard:
        console.line(
            f"basis    {len(config.hadamard.weights)} weights in Hadamard blocks of {config.hadamard.block_size}"
        )
    if checkpoint.tokenizer_path is not None:
        console.line(f"given    tokenizer {checkpoint.tokenizer_path}")
    for key, value in checkpoint.override.items():
        console.line(f"given    {key} = {value!r}")
    for choice in checkpoint.choices:
        console.line(f"chosen   {choice.choice}: {as_options(str(choice))}")
    console.line()
    if each:
        rows = [(i.name, i.type, " x ".join(map(str, i.shape)), f"{i.bytes}", f"{_bits([i]):.3f}") for i in tensors]
        console.table(("tensor", "type", "shape", "bytes", "bits/weight"), rows)
        console.line()
    sums = {kind: (len(group), group) for kind, group in _by_type(tensors).items()} | {"all": (len(tensors), tensors)}
    console.table(
        ("type", "tensors", "weights", "bytes", "bits/weight"),
        [
            (kind, str(count), str(_weights(group)), size_text(sum(i.bytes for i in group)), f"{_bits(group):.3f}")
            for kind, (count, group) in sums.items()
        ],
    )


def _by_type(tensors: Sequence[TensorInfo]) -> dict[str, list[TensorInfo]]:
    groups: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        groups.setdefault(info.type, []).append(info)
    return groups


def _sums(tensors: Sequence[TensorInfo]) -> dict[str, Any]:
    total = sum(info.bytes for info in tensors)
    return {"tensors": len(tensors), "weights": _weights(tensors), "bytes": total, "bits_per_weight": _bits(tensors)}


def _weights(tensors: Sequence[TensorInfo]) -> int:
    return sum(math.prod(info.shape) for info in tensors)


def _bits(tensors: Sequence[TensorInfo]) -> float:
    """Of storage, scales included, per weight."""
    weights = _weights(tensors)
    return 8 * sum(info.bytes for info in tensors) / weights if weights else 0.0
