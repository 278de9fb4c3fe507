"""What a format of directories is: how its tensors are read, and how ternary weights are stored in it.

A directory has config.json and safetensors; `hf` reads and `hf_writer` writes what all have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bittorch.models.io import codecs
from bittorch.models.io.checkpoint import Checkpoint, StoredTensor
from bittorch.models.io.errors import LossyError
from bittorch.models.io.safetensors_header import RawTensor
from bittorch.models.io.ternary_tensor import chunks
from bittorch.models.packed_weight import BlockWeight, PackedWeight

Parts = Mapping[str, Tensor]


class Directory(NamedTuple):
    """A directory that is being opened.

    Args:
        path: of it.
        raw: its tensors by canonical name, not decoded.
        values: of config.json.
        quantization: its quantization_config.
        metadata: of the safetensors files.
    """

    path: Path
    raw: Mapping[str, RawTensor]
    values: Mapping[str, Any]
    quantization: Mapping[str, Any] | None
    metadata: Mapping[str, str]


class Found(NamedTuple):
    """What a format makes of a directory.

    Args:
        format: its name, as `Checkpoint.format` gives it.
        tensors: by canonical name.
        activation_bits: of its ternary layers.
        values: of config.json, where the format means others than it says.
    """

    format: str
    tensors: dict[str, StoredTensor]
    activation_bits: int | None
    values: Mapping[str, Any] | None = None


class Layout:
    """What a format stores for a ternary weight, and what its config.json says of it.

    Attributes:
        one_dtype: all floats of a file must have one dtype, as transformers runs no model that mixes them.
        rounds_biases: biases are stored as other values than they have.
        own: nobody but bittorch reads it, so its config.json may say what transformers has no entry for, and an
            embedding may stay packed; elsewhere it becomes floats, which a warning says. Quantised blocks stay too.
    """

    one_dtype = True
    rounds_biases = False
    own = False

    def parts(self, name: str, weight: PackedWeight) -> Parts:
        """Tensors by their last names, ``weight`` and so on."""
        raise NotImplementedError

    def blocks(self, name: str, weight: BlockWeight) -> Tensor:
        """What is stored for a matrix in quantised blocks, as ``<name>_blocks``; of our own format alone."""
        raise NotImplementedError

    def bias(self, module: str, bias: Tensor, weight: PackedWeight) -> Tensor:
        """What is stored for the bias of a ternary weight, which comes after it."""
        return bias

    def metadata(self) -> dict[str, str]:
        return {"format": "pt"}

    def quantization(self, dense: list[str]) -> dict[str, Any]:
        """quantization_config; ``dense`` are the linear modules that are not ternary."""
        raise NotImplementedError


class DirectoryFormat:
    """One format; the file of each has one, named ``FORMAT``.

    Attributes:
        methods: of quantization_config that it reads, as errors list them.
        targets: names under which it is written, as `convert` takes them.
    """

    methods: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[tuple[str, ...]] = ()

    def matches(self, directory: Directory) -> bool:
        """Whether a directory is of this format; the first of the register that says so reads it."""
        return (directory.quantization or {}).get("quant_method") in self.methods

    def read(self, directory: Directory) -> Found:
        """The tensors. Raises FormatError."""
        raise NotImplementedError

    def layout(self, to: str, source: Checkpoint, allow_lossy: bool) -> Layout:
        """For writing ``source`` as ``to``, one of `targets`. Raises LossyError where it cannot be held."""
        raise NotImplementedError


def refuse_depth(name: str, weight: PackedWeight, to: str) -> None:
    """Raises LossyError for a sum of planes."""
    if weight.depth != 1:
        raise LossyError(f"{name} is the sum of {weight.depth} ternary planes, which {to} cannot store; write bittorch")


def encode_rows(weight: PackedWeight, encode: Callable[[codecs.Codes], Any]) -> Tensor:
    """The rows of a packed weight in another layout, some at a time."""
    packed = weight.weight_packed.numpy()
    spans = chunks(len(packed), weight.in_features)
    parts = [torch.from_numpy(encode(codecs.unpack(packed[a:b], weight.in_features))) for a, b in spans]
    return torch.cat(parts)
