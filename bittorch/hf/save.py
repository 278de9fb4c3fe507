"""A folder of packed layers, and beside it one that people without bittorch load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bittorch.models.io import convert
from bittorch.models.io.conversion import check_target
from bittorch.nn import PackedLayer

COMPRESSED = "compressed-tensors"


def save_pretrained(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    compressed_tensors: bool | str | os.PathLike[str] = False,
    overwrite: bool = False,
    tokenizer: Any = None,
    **options: Any,
) -> list[Path]:
    """``model.save_pretrained(folder)``, and a copy in compressed-tensors, which transformers and vLLM load themselves.

    The copy holds the same codes and scales, 2 bits a weight, and is read back before it has its name. Quantised
    activations are bittorch's alone: transformers runs the copy with floating ones, and a warning says so.

    Args:
        model: of transformers, with packed layers of depth 1, of an architecture that `bittorch.models` knows.
        folder: of the packed model, written as transformers writes it.
        compressed_tensors: the folder of the copy; True is ``<folder>-compressed-tensors``, False writes none.
        overwrite: replace a copy that is there.
        tokenizer: of transformers, written into both folders; None writes none.
        **options: of ``save_pretrained``.

    Returns:
        The folders that were written.

    Raises:
        TypeError: compressed_tensors is no path and no bool.
        ValueError: no packed layer; for the copy, layers of trit planes, which compressed-tensors does not hold, or the
            folder of the model. Nothing is written then.
        FileExistsError: the copy is there, and overwrite is False; nothing is written then.
        FormatError, LossyError: what ``bittorch convert`` refuses; the packed folder is whole, and there is no copy.
    """
    packed = Path(folder)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PackedLayer)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer; call bittorch.export_for_inference(model) first")
    copy = _place_of_copy(packed, compressed_tensors)
    if copy is not None:
        if deep := [name for name, layer in layers.items() if layer.depth != 1]:
            raise ValueError(
                f"{deep[0]} has depth={layers[deep[0]].depth}, and compressed-tensors holds depth 1 alone; leave "
                "compressed_tensors out"
            )
        check_target(copy, to=COMPRESSED, overwrite=overwrite)
    model.save_pretrained(packed, **options)
    if tokenizer is not None:
        tokenizer.save_pretrained(packed)
    if copy is None:
        return [packed]
    convert(packed, copy, to=COMPRESSED, overwrite=overwrite)
    return [packed, copy]


def _place_of_copy(packed: Path, wanted: bool | str | os.PathLike[str]) -> Path | None:
    if not isinstance(wanted, bool | str | os.PathLike):
        raise TypeError(f"compressed_tensors must be a folder, True or False, got {wanted!r}")
    if isinstance(wanted, bool):
        return packed.with_name(f"{packed.name}-{COMPRESSED}") if wanted else None
    copy = Path(wanted)
    if copy.resolve() == packed.resolve():
        raise ValueError(f"compressed_tensors is {copy}, the folder of the packed model itself; name another")
    return copy
