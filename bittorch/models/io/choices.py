"""What a checkpoint leaves open or contradicts: every such choice has a name here, and none is made silently.

A reader that can go on takes what the reference program takes and calls `warn`, or `note` where no other choice is
known to be right. A reader that cannot go on raises `refusal`. `recorded` lists what was chosen. Tests open a small
file for each name of `CHOICES`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

from bittorch.models.io.errors import FormatError, LossyError

_PACKAGE = str(Path(__file__).resolve().parents[2]) + os.sep
_RECORD: contextvars.ContextVar[list[CheckpointWarning] | None] = contextvars.ContextVar("_RECORD", default=None)
Refusal = TypeVar("Refusal", FormatError, LossyError)


class CheckpointWarning(UserWarning):
    """A reader or writer of checkpoints chose what the file leaves open.

    Attributes:
        choice: the name of the choice, a key of `bittorch.models.io.choices.CHOICES`.
    """

    def __init__(self, choice: str, message: str) -> None:
        super().__init__(message)
        self.choice = choice

    def __reduce__(self) -> tuple[type[CheckpointWarning], tuple[str, str]]:
        return type(self), (self.choice, str(self))  # the base class would give the message alone


@dataclasses.dataclass(frozen=True)
class Choice:
    """One kind of choice.

    Args:
        outcome: ``warned``: something is taken, with a `CheckpointWarning`; ``noted``: it is taken as it is everywhere,
            and listed; ``refused``: nothing is taken.
        about: what the file leaves open or contradicts, and what happens.
    """

    outcome: Literal["warned", "noted", "refused"]
    about: str


CHOICES: dict[str, Choice] = {
    "gguf-activation": Choice(
        "warned",
        "A GGUF file of architecture bitnet has no hidden_activation: relu2 or SiLU is taken by the model's sizes.",
    ),
    "gguf-activation-bits": Choice(
        "noted",
        "A GGUF file does not say how many bits activations have: 8 for BitNet and I2_S, as they are run elsewhere.",
    ),
    "gguf-i2_s-layout": Choice("noted", "A GGUF file does not say how I2_S blocks lie: in the order of converters."),
    "hf-weight-scale": Choice(
        "noted", "A BitNet directory has no linear_class: weight_scale divides, as in transformers."
    ),
    "tokenizer-size": Choice(
        "warned", "A tokenizer has more tokens than the model has rows, or many fewer: it is taken as it is."
    ),
    "no-end-token": Choice(
        "warned", "No file of a model names a token that ends an answer: answers go on to their limit."
    ),
    "hf-tied-head": Choice(
        "warned",
        "A config.json says tie_word_embeddings, and the files have a head that differs: the stored head is taken.",
    ),
    "hf-rope": Choice(
        "warned",
        "A config.json has rope_parameters, and a rope_scaling or rope_theta that says otherwise: transformers' order.",
    ),
    "hf-output-bias": Choice(
        "warned",
        "A config.json says attention_bias, and the files have none for o: o has no bias, which is a zero one.",
    ),
    "hf-input-norms": Choice(
        "warned",
        "A directory has norms of the input of each matrix and no quantization_config: BitNet's online quantisation.",
    ),
    "hf-compressed-scheme": Choice(
        "refused",
        "A compressed-tensors scheme quantises activations, outputs or the cache in another way than 8 bits per token.",
    ),
    "skipped-parts": Choice(
        "warned",
        "A checkpoint has parts that are not run: what sees images, or predicts tokens beyond the next: left out.",
    ),
    "all-zero-matrix": Choice("warned", "A matrix is all zeros, in any format: it is taken as it is."),
    "exact-ternary": Choice(
        "warned", "Weights are stored as floats, and are exactly trits times scales: they are read as ternary weights."
    ),
    "exact-ternary-narrow": Choice(
        "warned",
        "Weights are stored as floats, and are exactly trits times scales of a few columns: they are read as floats.",
    ),
    "gguf-entry": Choice(
        "refused",
        "A GGUF file has an entry that no table knows, or a value that changes what the model computes.",
    ),
    "gguf-unrotated": Choice(
        "warned",
        "A GGUF file has tensors of PrismML's types, and no entry says that activations are rotated: they are not.",
    ),
    "gguf-hadamard": Choice(
        "refused",
        "A GGUF file has entries prism.hadamard of which one is missing, or has another value than the format knows.",
    ),
    "write-gguf-hadamard": Choice(
        "warned",
        "A model with rotated weights is written as GGUF: bittorch and PrismML's program alone read that they are.",
    ),
    "gguf-layers": Choice(
        "refused",
        "A GGUF file has an entry with a value for each layer, and the values differ.",
    ),
    "gguf-older": Choice(
        "warned",
        "A GGUF file lacks entries of its architecture that older converters did not write: what these models have.",
    ),
    "gguf-pre-tokenizer": Choice(
        "warned",
        "A GGUF file does not name its pre-tokenizer: that of LLaMA 3 is taken for its vocabulary, else the default.",
    ),
    "gguf-disputed-pre-tokenizer": Choice(
        "warned",
        "A GGUF file names the pre-tokenizer falcon3 or falcon_e, which llama.cpp and bitnet.cpp read differently.",
    ),
    "write-i2_s-activations": Choice(
        "warned",
        "A model whose activations are not 8-bit is written as I2_S, whose only other program has no others.",
    ),
    "write-dense-embedding": Choice(
        "warned",
        "A packed embedding is written to a directory for other programs, which have none: it becomes floats.",
    ),
    "write-compressed-activations": Choice(
        "warned",
        "A model with 8-bit activations is written as compressed-tensors, whose other readers have none.",
    ),
    "gguf-tokenizer-entry": Choice(
        "warned",
        "The tokenizer of a GGUF file has an entry that no table knows: it is ignored.",
    ),
    "tokenizer-tokens": Choice(
        "warned",
        "A directory numbers added tokens in another way than its vocabulary, or its end token is not in it.",
    ),
    "write-gguf-tokenizer": Choice(
        "warned",
        "A GGUF file cannot hold something of a directory's tokenizer or generation_config.json: it is left out.",
    ),
}


def warn(choice: str, message: str) -> None:
    """Warns of a choice that was made.

    Args:
        choice: a key of `CHOICES` whose outcome is ``warned``.
        message: names the file, what it leaves open, what is taken, and the option that says otherwise.

    Warns:
        CheckpointWarning: at the line outside of bittorch that caused it.
    """
    assert CHOICES[choice].outcome == "warned", choice
    warning = CheckpointWarning(choice, message)
    if (record := _RECORD.get()) is not None:
        record.append(warning)
    warnings.warn(warning, stacklevel=_level_outside())


def note(choice: str, message: str) -> None:
    """Lists a choice that was made, without a warning; arguments as of `warn`."""
    assert CHOICES[choice].outcome == "noted", choice
    if (record := _RECORD.get()) is not None:
        record.append(CheckpointWarning(choice, message))


@contextlib.contextmanager
def recorded() -> Iterator[list[CheckpointWarning]]:
    """The choices that are made inside of it, in their order; warnings are given all the same."""
    made: list[CheckpointWarning] = []
    token = _RECORD.set(made)
    try:
        yield made
    finally:
        _RECORD.reset(token)


def refusal(choice: str, message: str, kind: type[Refusal] = FormatError) -> Refusal:  # type: ignore[assignment]
    """The error for a choice that nobody can make, to be raised.

    Args:
        choice: a key of `CHOICES` whose outcome is ``refused``.
        message: names the file, the field, both values, and the way out.
        kind: `FormatError` of readers, `LossyError` of writers.

    Returns:
        The error, whose attribute ``choice`` is the name.
    """
    assert CHOICES[choice].outcome == "refused", choice
    error = kind(message)
    error.choice = choice
    return error


def _level_outside() -> int:
    """The ``stacklevel``, as `warn` needs it, of the nearest caller that is not part of bittorch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
