"""What every reader returns: the tensors of a language model under one set of names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from bittorch.models.config import EMBEDDING, ModelConfig
from bittorch.models.decoder import products, tensor_shapes
from bittorch.models.io import choices
from bittorch.models.io.errors import FormatError
from bittorch.models.io.stacks import stacked_name
from bittorch.models.packed_weight import BlockWeight, PackedWeight

INTEGERS = re.compile(r"BOOL|[UI]\d+")  # types of safetensors and GGUF


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor as it is stored.

    Args:
        name: canonical.
        type: of the storage: ``F32``, ``BF16``, ``TQ2_0``, ``bitnet``, ...
        shape: of the dense tensor.
        bytes: in the file, scales included.
        ternary: whether `Checkpoint.packed` gives it.
        activation_bits: of a layer that says so itself, of an embedding those of the head that is tied to it; ``model``
            where nothing is said: for what the configuration says, and for floating activations of an embedding.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    ternary: bool = False
    activation_bits: int | Literal["model"] | None = "model"


class StoredTensor:
    """A tensor in a file, decoded when asked; readers subclass it.

    Args:
        info: how it is stored.
        path: the file, for errors; None in memory.

    Attributes:
        rounds: whether `dense` computes values of those in the file, and may change the last bits.
    """

    rounds = False

    def __init__(self, info: TensorInfo, path: Path | None = None) -> None:
        self.info, self.path = info, path

    @property
    def where(self) -> str:
        """The tensor and its file, as errors name them."""
        return f"{self.info.name} ({self.info.type})" if self.path is None else f"{self.path}: {self.info.name}"

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        raise NotImplementedError

    def copied(self, dtype: torch.dtype | None = None) -> Tensor:
        """As `dense`, but never a view."""
        return self.dense(dtype)

    def packed(self, out: Tensor | None = None) -> PackedWeight:
        """What `Checkpoint.packed` gives."""
        raise ValueError(f"{self.info.name} is stored as {self.info.type}, which is not ternary; read it with dense()")

    def blocks(self) -> BlockWeight | None:
        """Quantised blocks that the kernels read as they stand; None for anything else."""
        return None

    def release(self) -> None:
        """Lets go of pages of the file; nothing where what is handed out is no view."""


class Checkpoint:
    """A language model's tensors, memory-mapped; a context manager.

    Names are those of transformers: ``model.embed_tokens.weight``, ``model.layers.0.self_attn.q_proj.weight``,
    ``model.layers.0.self_attn.attn_sub_norm.weight``, ``model.norm.weight``, ``lm_head.weight``, and biases. Rows of q
    and k are in the order of transformers whatever the file has.

    Attributes:
        config: the model's sizes and rules.
        format: ``safetensors``, ``bitnet``, ``bitnet-online``, ``compressed-tensors``, ``mlx``, ``masters``,
            ``bittorch``, ``gguf`` or ``memory``.
        metadata: what the file says of itself, undigested.
        tokenizer_source: the directory that has the tokenizer's files, or the ``tokenizer.*`` entries of a GGUF file.
        choices: what was chosen on opening because the file leaves it open or contradicts itself.
        override: fields of the configuration that the caller gave, and their values.
        tokenizer_path: of a tokenizer that the caller named, in the place of the checkpoint's.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        config: ModelConfig,
        tensors: Mapping[str, StoredTensor],
        metadata: Mapping[str, Any],
        tokenizer_source: Path | Mapping[str, Any],
        files: Sequence[Any] = (),
    ) -> None:
        self.path, self.format, self.config = path, format, config
        self.metadata, self.tokenizer_source = metadata, tokenizer_source
        self._tensors, self._files, self._told_of_zeros = dict(tensors), tuple(files), False
        self.choices: tuple[choices.CheckpointWarning, ...] = ()
        self.override: Mapping[str, Any] = {}
        self.tokenizer_path: Path | None = None
        self._check_complete()

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the tensors, in the order of the file."""
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """How a tensor is stored. Raises KeyError where there is none of this name."""
        return self.stored(name).info

    def activation_bits(self, name: str) -> int | None:
        """Of a ternary layer, by the name of its weight; of an embedding those of the head that is tied to it.

        Raises KeyError where there is none of this name.
        """
        bits = self.info(name).activation_bits
        if bits == "model" or "activation_bits" in self.override:
            return self.usual_activation_bits(name)
        return bits

    def usual_activation_bits(self, name: str) -> int | None:
        """Where nothing is said of the layer itself. No model is trained with bits for its embedding's product."""
        return None if name == EMBEDDING else self.config.activation_bits

    def dense(self, name: str, dtype: torch.dtype | None = None, copy: bool = False) -> Tensor:
        """A tensor's values.

        Args:
            name: canonical.
            dtype: of the result; None keeps that of the file, float32 for quantised types.
            copy: never a view of the file; bytes are copied some at a time, and never stand in memory twice.

        Returns:
            A tensor on the CPU; without ``copy`` it may be a view of the mapped file.

        Raises:
            KeyError: no such tensor.
            FormatError: damaged bytes: reserved codes, scales that are not finite.

        Warns:
            CheckpointWarning: a weight whose values are all 0.
        """
        values = self.stored(name).copied(dtype) if copy else self.stored(name).dense(dtype)
        if values.dim() == 2:
            self._tell_of_zeros(name, values)
        return values

    def packed(self, name: str, out: Tensor | None = None) -> PackedWeight:
        """The exact trits and scale of a ternary tensor; may be views of the mapped file.

        Args:
            name: canonical.
            out: ``(rows, ceil(columns / 4))`` uint8 in one piece, where a tensor of one plane that has to be decoded is
                written to. Others are given as they are.

        Raises:
            KeyError: no such tensor.
            ValueError: the tensor is not ternary; its info says so beforehand. ``out`` does not fit.
            FormatError: damaged bytes: reserved codes, scales that are not finite.

        Warns:
            CheckpointWarning: a weight whose values are all 0.
        """
        weight = self.stored(name).packed(out)
        self._tell_of_zeros(name, weight.weight_packed if bool(weight.scale.any()) else weight.scale)
        return weight

    def blocks(self, name: str) -> BlockWeight | None:
        """The quantised blocks of a matrix, which may be a view of the mapped file; None where it is not stored so.

        Raises:
            KeyError: no such tensor.
            FormatError: damaged bytes: scales that are not finite.

        Warns:
            CheckpointWarning: a weight whose bytes are all 0.
        """
        weight = self.stored(name).blocks()
        if weight is not None:
            self._tell_of_zeros(name, weight.blocks)
        return weight

    def _tell_of_zeros(self, name: str, values: Tensor) -> None:
        """Warns, once, of a matrix that is all zeros; a glance at its beginning is enough for others."""
        bits = values.view(torch.uint8) if values.element_size() == 1 else values  # float8 knows no any()
        if self._told_of_zeros or bool(bits[:1].any()) or bool(bits.any()):
            return
        self._told_of_zeros = True
        choices.warn(
            "all-zero-matrix",
            f"{self.path}: {name} {self.info(name).shape} is all zeros, and is taken as it is; the file may be "
            "unfinished or damaged",
        )

    def release(self, name: str) -> None:
        """Says that views of this tensor have been copied: the file's pages no longer count as the process's memory.

        A view stays valid and is read from the file again, so values written into it are lost.
        """
        self.stored(name).release()

    def close(self) -> None:
        """Lets go of the files; tensors that are views of them stay valid."""
        self._tensors.clear()
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stored(self, name: str) -> StoredTensor:
        """The tensor's reader; for writers that copy what needs no decoding."""
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(f"{self.path} has no tensor {name!r}") from None

    def _check_complete(self) -> None:
        """The tensors are those that the configuration calls for, and have its shapes."""
        if self.config.num_layers > len(self._tensors):  # before names are made for layers that nobody has
            raise FormatError(
                f"{self.path} has {len(self._tensors)} tensors, too few for the {self.config.num_layers} layers of its "
                "configuration"
            )
        config = self.config
        if (sparse := sum(map(config.has_experts, range(config.num_layers)))) * config.num_experts > len(self._tensors):
            raise FormatError(
                f"{self.path} has {len(self._tensors)} tensors, too few for {config.num_experts} experts in {sparse} "
                "layers of its configuration"
            )
        expected = tensor_shapes(self.config)
        unknown = [name for name in self._tensors if name not in expected]
        if missing := [name for name in expected if name not in self._tensors]:
            others = f"; it has {len(unknown)} others, first {unknown[0]!r:.100}" if unknown else ""
            raise FormatError(
                f"{self.path} lacks {len(missing)} tensors that its configuration calls for: {_some(missing)}{others}"
            )
        if unknown:
            raise FormatError(
                f"{self.path} has {len(unknown)} tensors that no part of the model uses: {_some(unknown)}"
            )
        for name, shape in expected.items():
            if (given := self._tensors[name].info.shape) != shape:
                raise FormatError(f"{self.path}: {name} must be {shape} by the configuration, got {given}")
            if INTEGERS.fullmatch(kind := self._tensors[name].info.type):
                raise FormatError(f"{self.path}: {name} must hold floats or packed trits, got integers of type {kind}")
        if config.hadamard is not None:
            columns = {stacked_name(name): count for name, count in products(config).items()}
            try:
                config.hadamard.check(columns, config.hidden_size)
            except ValueError as error:
                raise FormatError(f"{self.path}: {error}") from None


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
