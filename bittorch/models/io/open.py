"""Any checkpoint, by its path."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bittorch.models.config import ACTIVATIONS
from bittorch.models.io.checkpoint import Checkpoint
from bittorch.models.io.exact_ternary import TERNARY
from bittorch.models.io.gguf import open_gguf
from bittorch.models.io.hf import open_directory
from bittorch.models.io.tokenizer_files import with_pre_tokenizer
from bittorch.utils.replacement import recover


def open_checkpoint(
    path: str | Path,
    *,
    ternary: str = "auto",
    i2_s_layout: str = "128x32",
    hidden_act: str | None = None,
    pre_tokenizer: str | None = None,
) -> Checkpoint:
    """Opens a language model's checkpoint without reading its tensors.

    Args:
        path: a directory with config.json and safetensors, in one file or in shards by index; or one GGUF file.
        ternary: what becomes of linear weights that are stored as floats and are exactly trits times scales of the
            tensor, a row, or a group of columns. ``auto`` reads them as ternary weights where groups have 64 columns or
            more; ``never`` as floats; ``require`` refuses the model where a linear weight of a layer is not ternary,
            and takes groups from 4 columns on.
        i2_s_layout: the order of weights in I2_S tensors, which a GGUF file does not tell: ``128x32`` of converters
            and most builds of bitnet.cpp; ``64x16`` of its builds for ARM; ``rows4``, four rows a byte, of a build for
            x86. A wrong one gives noise instead of text.
        hidden_act: the activation of the MLP, ``silu`` or ``relu2``; None takes what the checkpoint says. A GGUF file
            of architecture ``bitnet`` often says nothing.
        pre_tokenizer: how a byte-level vocabulary of a GGUF file cuts text into words, by llama.cpp's name such as
            ``llama-bpe``; None takes what the file says.

    Returns:
        The open checkpoint; use it in a ``with`` statement.

    Warns:
        CheckpointWarning: the checkpoint leaves something open; the message names it, what is taken, and the option.

    Raises:
        FileNotFoundError: nothing there.
        FormatError: damaged, incomplete, or of a format or architecture that is not read; the message names it.
        ValueError: options out of range, and ``pre_tokenizer`` of a tokenizer that has rules of its own.
    """
    if hidden_act not in (None, *ACTIVATIONS):
        raise ValueError(f"hidden_act must be None or one of {', '.join(ACTIVATIONS)}, got {hidden_act!r}")
    if ternary not in TERNARY:
        raise ValueError(f"ternary must be one of {', '.join(TERNARY)}, got {ternary!r:.100}")
    path = Path(path)
    recover(path)
    if path.is_dir():
        checkpoint = open_directory(path, ternary)
        if hidden_act is not None:
            checkpoint.config = dataclasses.replace(checkpoint.config, hidden_act=hidden_act)
    elif path.is_file():
        checkpoint = open_gguf(path, i2_s_layout, hidden_act, ternary)
    else:
        raise FileNotFoundError(
            f"no checkpoint at {path}; give the path of a directory with config.json, or of a .gguf file: nothing is "
            "downloaded"
        )
    if pre_tokenizer is not None:
        checkpoint.tokenizer_source = with_pre_tokenizer(checkpoint.tokenizer_source, pre_tokenizer)
    return checkpoint
