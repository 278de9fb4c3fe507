"""Any checkpoint, by its path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bittorch.models.config import ACTIVATIONS
from bittorch.models.io.checkpoint import Checkpoint
from bittorch.models.io.choices import recorded
from bittorch.models.io.errors import FormatError
from bittorch.models.io.exact_ternary import TERNARY
from bittorch.models.io.gguf import open_gguf
from bittorch.models.io.gguf_split import read_parts
from bittorch.models.io.hf import open_directory
from bittorch.models.io.override import checked
from bittorch.models.io.tokenizer_files import VOCABULARIES, size_fault, token_count, with_pre_tokenizer
from bittorch.utils.replacement import recover


def open_checkpoint(
    path: str | Path,
    *,
    ternary: str = "auto",
    i2_s_layout: str = "128x32",
    hidden_act: str | None = None,
    override: Mapping[str, Any] | None = None,
    pre_tokenizer: str | None = None,
    tokenizer: str | Path | None = None,
) -> Checkpoint:
    """Opens a language model's checkpoint without reading its tensors.

    Args:
        path: a directory with config.json and safetensors, in one file or in shards by index; or one GGUF file.
        ternary: what becomes of linear weights that are stored as floats and are exactly trits times scales of the
            tensor, a row, or a group of columns. ``auto`` reads them as ternary weights where groups have 64 columns or
            more; ``never`` as floats; ``require`` refuses the model where a linear weight of a layer is not ternary,
            and takes groups from 4 columns on.
        i2_s_layout: the order of weights in I2_S tensors, which a GGUF file does not record: ``128x32`` of converters
            and most builds of bitnet.cpp; ``64x16`` of its builds for ARM; ``rows4``, four rows per byte, of a build
            for x86. A wrong one gives noise instead of text.
        hidden_act: short for ``override={"hidden_act": ...}``: the activation of the MLP, ``silu``, ``relu2`` or
            ``gelu_tanh``. A GGUF file of architecture ``bitnet`` often says nothing.
        override: values for fields of `bittorch.models.ModelConfig`, in place of those of the checkpoint. With
            ``eos_token_ids`` no other token ends an answer.
        pre_tokenizer: how a byte-level vocabulary of a GGUF file cuts text into words, by llama.cpp's name such as
            ``llama-bpe``; None uses the name in the file.
        tokenizer: where the tokenizer is, if not in the checkpoint: a directory, its tokenizer.json or tokenizer.model,
            or a GGUF file. Its size must fit the vocabulary of the model.

    Returns:
        The open checkpoint; use it in a ``with`` statement.

    Warns:
        CheckpointWarning: the checkpoint leaves something open; the message names it, the decision, and the option.

    Raises:
        FileNotFoundError: nothing there.
        FormatError: damaged, incomplete, or of an unsupported format or architecture; the message names it.
        TypeError, ValueError: options out of range, fields that no configuration has, or none of this architecture,
            and ``pre_tokenizer`` of a tokenizer that has rules of its own.
    """
    if hidden_act not in (None, *ACTIVATIONS):
        raise ValueError(f"hidden_act must be None or one of {', '.join(ACTIVATIONS)}, got {hidden_act!r}")
    given = checked(override)
    if hidden_act is not None and given.setdefault("hidden_act", hidden_act) != hidden_act:
        raise ValueError(f"hidden_act is {hidden_act!r}, and override says {given['hidden_act']!r}: give one of them")
    if ternary not in TERNARY:
        raise ValueError(f"ternary must be one of {', '.join(TERNARY)}, got {ternary!r:.100}")
    path = Path(path)
    recover(path)
    with recorded() as made:
        if path.is_dir():
            checkpoint = open_directory(path, ternary, given)
        elif path.is_file():
            checkpoint = open_gguf(path, i2_s_layout, ternary, given)
        else:
            raise FileNotFoundError(
                f"no checkpoint at {path}; give the path of a directory with config.json, or of a .gguf file: nothing "
                "is downloaded"
            )
    checkpoint.choices, checkpoint.override = tuple(made), given
    if ends := [end for end in given.get("eos_token_ids", ()) if end >= checkpoint.config.vocab_size]:
        raise FormatError(
            f"override of eos_token_ids has {ends[0]}, but {path} has {checkpoint.config.vocab_size} tokens"
        )
    if tokenizer is not None:
        checkpoint.tokenizer_path = Path(tokenizer)
        checkpoint.tokenizer_source = _tokenizer(checkpoint.tokenizer_path, checkpoint)
    if pre_tokenizer is not None:
        checkpoint.tokenizer_source = with_pre_tokenizer(checkpoint.tokenizer_source, pre_tokenizer)
    return checkpoint


def _tokenizer(path: Path, checkpoint: Checkpoint) -> Path | Mapping[str, Any]:
    """The source of another tokenizer. Raises FileNotFoundError, and FormatError where it is none or does not fit."""
    if not path.is_file() and not path.is_dir():
        raise FileNotFoundError(f"no tokenizer at {path}")
    source: Path | Mapping[str, Any] = path if path.is_dir() else path.parent
    names = [name for name in VOCABULARIES if (path.parent / name).is_file()]
    if path.is_file() and path.name not in VOCABULARIES:
        files, entries, _ = read_parts(path)
        for file in files:
            file.close()
        source = {key: value for key, value in entries.items() if key.startswith("tokenizer.")}
    elif path.is_file() and names[0] != path.name:
        raise FormatError(f"{path} lies beside {names[0]}, which comes first; put it into a directory of its own")
    elif path.is_dir() and not any((path / name).is_file() for name in VOCABULARIES):
        raise FormatError(f"{path} has no tokenizer: none of {', '.join(VOCABULARIES)}")
    count = token_count(source)
    if count is not None and (fault := size_fault(count, checkpoint.config.vocab_size)):
        raise FormatError(f"{path} does not fit {checkpoint.path}: {fault}")
    return source
