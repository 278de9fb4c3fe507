"""bittorch's own checkpoints of language models: config.json, model.safetensors (docs/reference/ternary_format.md).

Packed layers stand as ``<module>.weight_packed`` and ``<module>.scale``, or, in the layout for storage only, as
``<module>.weight_base3`` with five trits per byte.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.io import codecs
from bittorch.models.io.blocks import KINDS, Blocks
from bittorch.models.io.checkpoint import Checkpoint, StoredTensor, TensorInfo
from bittorch.models.io.codecs import Bytes
from bittorch.models.io.dense_tensor import DenseTensor
from bittorch.models.io.directory_format import Directory, DirectoryFormat, Found, Layout, Parts, encode_rows
from bittorch.models.io.errors import FormatError
from bittorch.models.io.hf_config import note
from bittorch.models.io.safetensors_header import RawTensor, parse_json
from bittorch.models.io.ternary_tensor import TernaryTensor, check_scale, chunks
from bittorch.models.packed_weight import BlockWeight, PackedWeight
from bittorch.nn.packed_layer import groups_of
from bittorch.quant.ternary import ACTIVATION_BITS
from bittorch.quant.trit_planes import check_plane_scales
from bittorch.utils.checkpoint import FORMAT_VERSION, LAYOUT

BASE3_LAYOUT = "5trits-base3-rows"
# Layout, the key of its codes, weights per byte.
LAYOUTS = {LAYOUT: ("weight_packed", 4), BASE3_LAYOUT: ("weight_base3", 5)}
# Rows and columns of a layer of each kind.
SIZES = {"linear": ("out_features", "in_features"), "embedding": ("num_embeddings", "embedding_dim")}


class OwnPacked(TernaryTensor):
    """Canonical bytes, handed out as they stand in the file."""

    def __init__(self, info: TensorInfo, stored: RawTensor, scale: RawTensor, depth: int) -> None:
        super().__init__(info, stored.file.path)
        self.stored, self.scale, self.depth = stored, scale, depth

    def packed(self, out: Tensor | None = None) -> PackedWeight:
        packed, scale = self.stored.tensor(), self._scale()
        try:
            ops.check_packed(packed, self.info.shape[1], self.where)
        except ValueError as error:
            raise FormatError(str(error)) from None
        check_scale(scale, self.where, self.info.shape[1])
        return PackedWeight(packed, scale, self.info.shape[1], self.depth)

    def _scale(self) -> Tensor:
        scale = self.scale.tensor()
        try:
            check_plane_scales(scale, self.depth, f"{self.where}: the scale")
        except ValueError as error:
            raise FormatError(str(error)) from None
        return scale

    def release(self) -> None:
        self.stored.file.release(self.stored.offset, self.stored.bytes)


class OwnBase3(OwnPacked):
    """Five trits per byte."""

    packed = TernaryTensor.packed

    def decode(self, out: Bytes) -> Tensor:
        rows, columns = self.stored.shape[0], self.info.shape[1]
        data = self.stored.file.view(self.stored.offset, self.stored.bytes).reshape(self.stored.shape)
        for begin, end in chunks(rows, columns):
            codecs.decode_base3(data[begin:end], columns, out[begin:end])
        self.stored.file.release(self.stored.offset, self.stored.bytes)
        return self._scale()


class OwnBlocks(StoredTensor):
    """Quantised blocks of GGUF, as they stood there.

    Raises:
        FormatError: a kind that is not known, a tensor that is not whole blocks.
    """

    def __init__(self, name: str, stored: RawTensor, kind: Any, what: str) -> None:
        known = KINDS.get(kind) if isinstance(kind, str) else None
        if known is None or stored.dtype != "U8" or len(stored.shape) != 2 or stored.shape[1] % known.bytes:
            raise FormatError(
                f"{what}: {name}_blocks must be U8 rows of whole blocks of {', '.join(KINDS)}, got {kind!r:.40}, "
                f"{stored.dtype} {stored.shape}"
            )
        shape = stored.shape[0], stored.shape[1] // known.bytes * known.weights
        super().__init__(TensorInfo(name, kind, shape, stored.bytes), stored.file.path)
        self._blocks = Blocks(stored.file, stored.offset, kind, shape, self.where)

    def blocks(self) -> BlockWeight:
        return self._blocks.weight()

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self._blocks.dense(dtype or torch.float32)

    def release(self) -> None:
        self._blocks.release()


def read_own(raw: Mapping[str, RawTensor], metadata: Mapping[str, str], what: str) -> dict[str, StoredTensor]:
    """The tensors of a bittorch checkpoint by canonical name.

    Raises:
        FormatError: another version or layout, layers whose tensors are missing or do not fit their sizes.
    """
    if "bittorch" not in metadata:
        raise FormatError(f"{what} says that it is bittorch's, but its safetensors have no 'bittorch' metadata")
    header = parse_json(metadata["bittorch"].encode("utf-8", "surrogatepass"), f"{what}: the 'bittorch' metadata")
    version, layout = header.get("version"), header.get("layout")
    if version != FORMAT_VERSION or not isinstance(layout, str) or layout not in LAYOUTS:
        raise FormatError(
            f"{what} has format version {version!r:.40} and layout {layout!r:.40}; this bittorch reads version "
            f"{FORMAT_VERSION} and {', '.join(LAYOUTS)}"
        )
    raw = _with_aliases(raw, header.get("aliases"), what)
    layers = header.get("layers")
    if not isinstance(layers, dict):
        raise FormatError(f"{what} has no layers in its 'bittorch' metadata")
    key, per_byte = LAYOUTS[layout]
    parts = {f"{module}.{part}" for module in layers for part in (key, "scale")}
    if absent := sorted(parts - raw.keys()):
        raise FormatError(f"{what} describes {len(layers)} packed layers, but lacks {', '.join(absent[:10])}")
    kinds = header.get("blocks", {})
    if not isinstance(kinds, dict) or {f"{name}_blocks" for name in kinds} - raw.keys():
        raise FormatError(f"{what} has blocks {kinds!r:.200} in its 'bittorch' metadata, which its tensors contradict")
    tensors: dict[str, StoredTensor] = {}
    for name, entry in raw.items():
        module, _, kind = name.rpartition(".")
        if (matrix := name.removesuffix("_blocks")) in kinds and matrix != name:
            tensors[matrix] = OwnBlocks(matrix, entry, kinds[matrix], what)
        elif name not in parts:
            tensors[name] = DenseTensor(name, entry)
        elif kind == key:
            tensors[f"{module}.weight"] = _layer(module, layers[module], entry, raw[f"{module}.scale"], per_byte, what)
    return tensors


def _with_aliases(raw: Mapping[str, RawTensor], aliases: Any, what: str) -> dict[str, RawTensor]:
    if not isinstance(aliases, dict):
        raise FormatError(f"{what} has no aliases in its 'bittorch' metadata")
    for name, target in aliases.items():
        if not isinstance(target, str) or target not in raw or name in raw:
            raise FormatError(
                f"{what} says that {name!r:.100} is stored as {target!r:.100}, which its tensors contradict"
            )
    return {**raw, **{name: raw[target] for name, target in aliases.items()}}


def _layer(module: str, config: Any, stored: RawTensor, scale: RawTensor, per_byte: int, what: str) -> StoredTensor:
    where = f"{what}: layer {module!r:.100}"
    kind = config.get("kind", "linear") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in SIZES:
        raise FormatError(f"{where} is no linear layer and no embedding: {config!r:.200}")
    names = (*SIZES[kind], "depth")
    sizes = [config.get(key, default) for key, default in zip(names, (0, 0, 1), strict=True)]
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        raise FormatError(f"{where} has {', '.join(names)} {sizes!r:.100}; they must be positive integers")
    n, k, depth = sizes
    rows = depth * n
    if stored.dtype != "U8" or stored.shape != (rows, -(-k // per_byte)):
        raise FormatError(
            f"{where} must be U8 {(rows, -(-k // per_byte))} for {k} -> {n} at depth {depth}, got {stored.dtype} "
            f"{stored.shape}"
        )
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    by_group = groups > 1 and k % groups == 0 and k // groups % 4 == 0
    if scale.dtype != "F32" or scale.shape not in ((1,), (rows,), (rows, groups) if by_group else (1,)):
        raise FormatError(
            f"{where} must have float32 scales (1,), ({rows},) or ({rows}, groups of a multiple of 4 of {k}), got "
            f"{scale.dtype} {scale.shape}"
        )
    kind = "ternary" if per_byte == 4 else "base3"
    bits = config.get("activation_bits", "model")
    if bits not in ("model", *ACTIVATION_BITS):
        raise FormatError(f"{where} has activation_bits {bits!r:.40}; it must be one of {ACTIVATION_BITS}")
    info = TensorInfo(f"{module}.weight", kind, (n, k), stored.bytes + scale.bytes, ternary=True, activation_bits=bits)
    return (OwnPacked if per_byte == 4 else OwnBase3)(info, stored, scale, depth)


def _join_head(tensors: dict[str, StoredTensor]) -> None:
    """Leaves out a head that is stored as its embedding, which takes the head's activation_bits."""
    embedding, head = tensors.get(EMBEDDING), tensors.get(HEAD)
    if isinstance(embedding, OwnPacked) and isinstance(head, OwnPacked) and head.stored is embedding.stored:
        embedding.info = dataclasses.replace(embedding.info, activation_bits=head.info.activation_bits)
        del tensors[HEAD]


class OwnLayout(Layout):
    """bittorch's own; five trits per byte with ``base3``."""

    one_dtype = False
    own = True

    def __init__(self, source: Checkpoint, base3: bool) -> None:
        self.layout = BASE3_LAYOUT if base3 else LAYOUT
        self.source = source
        self.layers: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, str] = {}
        self.kinds: dict[str, str] = {}

    def parts(self, name: str, weight: PackedWeight) -> Parts:
        scale, module = weight.scale, name.removesuffix(".weight")
        layer = self._described(name, weight, "linear")
        if name == EMBEDDING:
            self.layers[module] = {"kind": "embedding", **self._described(name, weight, "embedding")}
            if self.source.config.tie_embeddings:  # a linear layer of the same tensors
                head = HEAD.removesuffix(".weight")
                self.layers[head] = layer
                self.aliases = {f"{head}.{part}": f"{module}.{part}" for part in (LAYOUTS[self.layout][0], "scale")}
        else:
            self.layers[module] = layer
        codes = weight.weight_packed
        if self.layout == BASE3_LAYOUT:
            codes = encode_rows(weight, codecs.encode_base3)
        return {LAYOUTS[self.layout][0]: codes, "scale": scale}

    def _described(self, name: str, weight: PackedWeight, kind: str) -> dict[str, Any]:
        """The arguments of the layer's class. A bias is entered once it is seen, after its weight."""
        sizes = dict(zip(SIZES[kind], (weight.out_features, weight.in_features), strict=True))
        groups = {"groups": groups_of(weight.weight_packed, weight.scale)}
        depth = {"depth": weight.depth} if weight.depth > 1 else {}
        rest = {"bias": False, "activation_bits": self.source.activation_bits(name)} if kind == "linear" else {}
        return {**sizes, **groups, **rest, **depth}

    def bias(self, module: str, bias: Tensor, weight: PackedWeight) -> Tensor:
        self.layers[module]["bias"] = True
        return bias

    def blocks(self, name: str, weight: BlockWeight) -> Tensor:
        self.kinds[name] = weight.kind
        return weight.blocks

    def metadata(self) -> dict[str, str]:
        header = {"version": FORMAT_VERSION, "layout": self.layout, "layers": self.layers, "aliases": self.aliases}
        header |= {"blocks": self.kinds} if self.kinds else {}
        return {"format": "pt", "bittorch": json.dumps(header)}

    def quantization(self, dense: list[str]) -> dict[str, Any]:
        return {"quant_method": "bittorch"}


class Own(DirectoryFormat):
    """See `DirectoryFormat`."""

    methods = ("bittorch",)
    targets = ("bittorch", "bittorch-base3")

    def read(self, directory: Directory) -> Found:
        tensors = read_own(directory.raw, directory.metadata, str(directory.path))
        if directory.values.get("tie_word_embeddings"):
            _join_head(tensors)
        if "bittorch" in directory.values:
            return Found("bittorch", tensors, note(directory.values).get("activation_bits"))
        # `save_pretrained` of transformers wrote it, with bittorch.hf: norms are those of a model that runs there.
        said = next((tensor.info.activation_bits for tensor in tensors.values() if tensor.info.ternary), None)
        bits = None if said == "model" else said
        return Found("bittorch", tensors, bits, {**directory.values, "bittorch": {"fuse_norms": False}})

    def layout(self, to: str, source: Checkpoint, allow_lossy: bool) -> OwnLayout:
        return OwnLayout(source, base3=to == "bittorch-base3")


FORMAT = Own()
