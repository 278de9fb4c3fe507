"""Modules with the weights of a checkpoint, straight to their device."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bittorch.models.blocks import BlockEmbedding, BlockLinear
from bittorch.models.config import EMBEDDING
from bittorch.models.hadamard import Basis, Rotated
from bittorch.models.int8_head import Int8Head
from bittorch.models.io import Checkpoint, FormatError
from bittorch.models.io.stacks import stacked_name
from bittorch.models.linear import (
    Concatenated,
    dense_linear,
    fuse_packed,
    head_of,
    packed_embedding,
    packed_linear,
)
from bittorch.models.memory import new_tensor
from bittorch.models.packed_weight import BlockWeight, PackedWeight
from bittorch.nn import TernaryEmbeddingInference
from bittorch.quant import check_depth, pack_trit_planes
from bittorch.quant.ternary import Granularity, check_activation_bits

STORED = {"F16": torch.float16, "BF16": torch.bfloat16}
KV_CACHES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADS = ("auto", "int8", "stored")
DEFAULT_GROUP = 64  # the smallest that the fast kernels take
PLANE_ROWS = 8192  # converted at once: bounds what float32 and int8 copies of a head take
# Of layers in planes: integers, which are fast and whose sums no batch changes, and precise enough for such weights.
CONVERTED_ACTIVATION_BITS = 16


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """What becomes of a checkpoint's tensors.

    Args:
        device: of the model.
        dtype: of activations and dense layers; None for that of the stored embedding where it is a half, else float32.
            A ternary model whose embedding is stored in float16 was trained in bfloat16, whose range float16 has not:
            None then is float32 on a CPU and bfloat16 elsewhere. Halves of an embedding and of a dense head stay as
            stored where a CPU runs the model in float32: they are widened row by row, to the same values.
        depth: planes of trits into which dense linear layers are converted, 1 to 6; None leaves them dense.
        group_size: columns that share a scale in these planes; 0 for one scale per row. None: groups of 64 up to
            depth 3 if they divide a row, and from depth 4 on one scale per row, which is as good there. The fast
            kernels of a CPU require multiples of 64.
        activation_bits: of packed layers: 8, 16, 24, None for floating, or ``auto``: what the checkpoint was trained
            with for its ternary layers, 16 for converted ones.
        head_depth: planes of the language-model head, 1 to 6; None leaves it as ``head`` says.
        head: of a head that is neither ternary nor converted. ``int8`` multiplies int8 rows with a scale each
            (`bittorch.models.int8_head`), ``stored`` the weights as they are; ``auto`` takes int8 rows where a CPU has
            a head in quantised blocks. A table that is tied to it is looked up as it is stored.
        fuse_norms: as of `bittorch.models.ModelConfig`; ``auto`` takes what the checkpoint says.
        kv_cache: what keys and values are kept in, ``float32``, ``bfloat16`` or ``float16``; ``auto`` for the dtype of
            the model, which rounds nothing. Halves take half the memory and time of float32 when tokens are decoded.

    Raises:
        TypeError, ValueError: values out of range.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    depth: int | None = None
    group_size: int | None = None
    activation_bits: int | Literal["auto"] | None = "auto"
    head_depth: int | None = None
    fuse_norms: bool | Literal["auto"] = "auto"
    kv_cache: str = "auto"
    head: str = "auto"

    def __post_init__(self) -> None:
        for value in (self.depth, self.head_depth):
            if value is not None:
                check_depth(value)
        if self.group_size is not None and self.depth is None and self.head_depth is None:
            raise ValueError(f"group_size={self.group_size} is that of converted layers; give depth or head_depth too")
        if self.group_size is not None and self.group_size % DEFAULT_GROUP:
            warnings.warn(
                f"group_size={self.group_size} is no multiple of {DEFAULT_GROUP}: only the portable kernel takes such "
                f"groups, which is many times slower",
                stacklevel=3,
            )
        if self.dtype is not None and self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16, got {self.dtype!r}")
        if self.activation_bits != "auto":
            check_activation_bits(self.activation_bits, 1)
        if self.fuse_norms != "auto" and not isinstance(self.fuse_norms, bool):
            raise TypeError(f"fuse_norms must be True, False or 'auto', got {self.fuse_norms!r}")
        if self.kv_cache != "auto" and self.kv_cache not in KV_CACHES:
            raise ValueError(f"kv_cache must be one of auto, {', '.join(KV_CACHES)}, got {self.kv_cache!r}")
        if self.head not in HEADS:
            raise ValueError(f"head must be {', '.join(HEADS[:-1])} or {HEADS[-1]}, got {self.head!r}")
        if self.head == "int8" and self.head_depth is not None:
            raise ValueError(
                f"head='int8' and head_depth={self.head_depth} are two forms of one head; give one of them"
            )


def default_group_size(depth: int, columns: int) -> int:
    """Columns that share a scale where nothing is said, 0 for a scale per row: deep planes do not gain from groups."""
    return DEFAULT_GROUP if depth < 4 and columns % DEFAULT_GROUP == 0 else 0


class Loader:
    """Builds the modules of one checkpoint: the `bittorch.models.rules.Source` of `Decoder.fill`."""

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        self.checkpoint, self.config, self.options = checkpoint, checkpoint.config, options
        if options.fuse_norms != "auto":
            self.config = dataclasses.replace(self.config, fuse_norms=options.fuse_norms)
        self.device = torch.device(options.device)
        self.dtype = self._dtype()
        # A half that is widened where it is looked up or multiplied gives the same values at half the memory.
        self.keeps_halves = self.device.type == "cpu" and self.dtype == torch.float32
        self._bases: dict[int, Basis] = {}

    def _dtype(self) -> torch.dtype:
        """Of the model."""
        # "BF16 (ternary)" are trits that stand as bfloat16 in the file.
        stored = STORED.get(self.checkpoint.info(EMBEDDING).type.partition(" ")[0], torch.float32)
        if self.options.dtype is not None:
            return self.options.dtype
        first = (name for name in self.checkpoint.names if name.startswith("model.layers.0."))
        if stored != torch.float16 or not any(self.checkpoint.info(name).ternary for name in first):
            return stored
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def vector(self, name: str, precise: bool = False) -> Tensor:
        """The weight of a norm or a router."""
        return self.values(f"{name}.weight", precise)

    def values(self, name: str, precise: bool = False) -> Tensor:
        """A tensor by its whole name."""
        return self._dense(name, torch.float32 if precise else self.dtype, copy=True)

    def embedding(self, name: str) -> nn.Module:
        """The embedding; with one weight for the head too where they are tied and the head is not converted."""
        weight = f"{name}.weight"
        if self.checkpoint.info(weight).ternary:
            return packed_embedding(self.checkpoint.packed(weight), device=self.device, dtype=self.dtype)
        if (blocks := self._blocks(weight)) is not None:
            return BlockEmbedding(blocks, self.dtype).eval()
        shared = self.config.tie_embeddings and self.options.head_depth is None
        return nn.Embedding.from_pretrained(self._table(weight, shared))

    def head(self, name: str, embedding: nn.Module | None) -> nn.Module:
        """The head; ``embedding`` is what it is tied to."""
        if isinstance(embedding, TernaryEmbeddingInference):
            return embedding.tied_head(self._bits(f"{name}.weight"))
        if isinstance(embedding, BlockEmbedding) and self.options.head_depth is None:
            return self._as_asked(f"{name}.weight", embedding.tied_head())
        if not isinstance(embedding, nn.Embedding) or self.options.head_depth is not None:
            return self._head(f"{name}.weight")
        head = head_of(embedding.weight)
        head.weight = embedding.weight
        return self._as_asked(f"{name}.weight", head)

    def _as_asked(self, name: str, exact: BlockLinear | nn.Linear) -> nn.Module:
        """The head, or int8 rows of it."""
        wanted = self.options.head
        if wanted == "int8" or (wanted == "auto" and isinstance(exact, BlockLinear)):
            return Int8Head(exact, lambda: self.checkpoint.release(name)).eval()
        return exact

    def _head(self, name: str) -> nn.Module:
        stored, depth = self.checkpoint.info(name).ternary, self.options.head_depth
        if not stored and depth is None:
            if (blocks := self._blocks(name)) is not None:
                return self._as_asked(name, BlockLinear(blocks).eval())
            return self._as_asked(name, head_of(self._table(name, True)))
        planes = self.checkpoint.packed(name) if stored else self._planes(name, depth or 1)
        bits = self._bits(name if stored else None)
        if bits == 8 and (planes.depth > 1 or not stored):  # converted: nobody trained it with 8 bits
            bits = CONVERTED_ACTIVATION_BITS
        return packed_linear([planes], None, activation_bits=bits, device=self.device)

    def linear(self, names: Sequence[str], biased: Sequence[bool]) -> nn.Module:
        """The layers of these names, which have one input, side by side; those in a rotated basis rotate it once."""
        hadamard = self.config.hadamard
        rotated = [hadamard is not None and stacked_name(f"{name}.weight") in hadamard.names for name in names]
        if len(set(rotated)) > 1:
            return Concatenated([self.linear([name], [own]) for name, own in zip(names, biased, strict=True)])
        layer = self._side_by_side(names, biased)
        if hadamard is None or not all(rotated):
            return layer
        width = self.checkpoint.info(f"{names[0]}.weight").shape[1]
        if width not in self._bases:
            self._bases[width] = hadamard.basis(width, self.device)
        return Rotated(layer, self._bases[width])

    def _side_by_side(self, names: Sequence[str], biased: Sequence[bool]) -> nn.Module:
        weights = [f"{name}.weight" for name in names]
        ternary = [self.checkpoint.info(name).ternary for name in weights]
        depth = self.options.depth
        bits = {self._bits(name if trits else None) for name, trits in zip(weights, ternary, strict=True)}
        if len(bits) > 1 or (any(ternary) and not all(ternary) and depth is None):
            return Concatenated([self._side_by_side([name], [own]) for name, own in zip(names, biased, strict=True)])
        bias = self._biases(names, biased)
        if all(ternary):
            parts = self._packed(weights)
            return packed_linear(parts, bias, activation_bits=bits.pop(), device=self.device)
        if depth is not None:
            planes = [
                self.checkpoint.packed(name) if trits else self._planes(name, depth)
                for name, trits in zip(weights, ternary, strict=True)
            ]
            return packed_linear(planes, bias, activation_bits=bits.pop(), device=self.device)
        dense = [self.checkpoint.dense(name) for name in weights]
        return dense_linear(dense, bias, device=self.device, dtype=self.dtype)

    def _packed(self, names: Sequence[str]) -> list[PackedWeight]:
        """Ternary weights of one input; on a CPU those that are decoded come to stand one behind the other."""
        if self.device.type != "cpu":
            return [self.checkpoint.packed(name) for name in names]
        shapes = [self.checkpoint.info(name).shape for name in names]
        rows = [shape[0] for shape in shapes]
        room = new_tensor((sum(rows), (shapes[0][1] + 3) // 4), torch.uint8)
        return [self.checkpoint.packed(name, part) for name, part in zip(names, room.split(rows), strict=True)]

    def _bits(self, name: str | None) -> int | None:
        """Of a stored ternary weight by its name; None for one that is converted."""
        chosen = self.options.activation_bits
        if chosen == "auto":
            return CONVERTED_ACTIVATION_BITS if name is None else self.checkpoint.activation_bits(name)
        return chosen

    def _blocks(self, name: str) -> BlockWeight | None:
        """Of a tensor that can stay as it is: in blocks, on a CPU."""
        return self.checkpoint.blocks(name) if self.device.type == "cpu" else None

    def _planes(self, name: str, depth: int) -> PackedWeight:
        columns, group_size = self.checkpoint.info(name).shape[1], self.options.group_size
        if group_size is None:
            group_size = default_group_size(depth, columns)
        granularity: Granularity = "group" if group_size else "channel"
        parts = []
        for rows in self._dense_rows(name):
            packed, scale = pack_trit_planes(rows.to(self.device).float(), depth, granularity, group_size or 128)
            scale = scale.expand(depth * len(rows)) if scale.numel() == 1 else scale
            parts.append(PackedWeight(packed, scale, columns, depth))
        return fuse_packed(parts, self.device)

    def _dense_rows(self, name: str) -> Iterator[Tensor]:
        """A matrix, `PLANE_ROWS` rows at a time."""
        weight = self.checkpoint.blocks(name)
        yield from self.checkpoint.dense(name).split(PLANE_ROWS) if weight is None else weight.dense_rows(PLANE_ROWS)

    def _table(self, name: str, multiplied: bool) -> Tensor:
        """A dense embedding or head; halves stay as they are where nothing multiplies them, or a kernel widens them."""
        stored = self.checkpoint.info(name).type in STORED and (self.keeps_halves or not multiplied)
        return self.checkpoint.dense(name, None if stored else self.dtype).to(self.device)

    def _biases(self, names: Sequence[str], biased: Sequence[bool]) -> Tensor | None:
        """Of the layers side by side, 0 for those that have none; None where none has."""
        if not any(biased):
            return None
        rows = [self.checkpoint.info(f"{name}.weight").shape[0] for name in names]
        parts = [
            self._bias(f"{name}.bias") if own else torch.zeros(count, device=self.device, dtype=self.dtype)
            for name, own, count in zip(names, biased, rows, strict=True)
        ]
        return torch.cat(parts)

    def _bias(self, name: str) -> Tensor:
        bias = self._dense(name, self.dtype)
        if not bool(torch.isfinite(bias).all()):
            raise FormatError(f"{self.checkpoint.path}: {name} holds NaN or Inf as {bias.dtype}")
        return bias

    def _dense(self, name: str, dtype: torch.dtype, copy: bool = False) -> Tensor:
        return self.checkpoint.dense(name).to(device=self.device, dtype=dtype, copy=copy)
