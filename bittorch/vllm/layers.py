"""What a folder says of its packed layers, read before vLLM makes any; no file of this needs vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.io.hf import read_shards
from bittorch.models.io.hf_config import note, refuse_note
from bittorch.models.io.own import OwnBase3, OwnBlocks, OwnPacked, read_own
from bittorch.models.io.safetensors_header import parse_json

ALONE = "bittorch's own engine runs it: bittorch.models.LanguageModel, or bittorch serve"


class PackedForm(NamedTuple):
    """A packed linear layer: its sizes, scales of a row (0 for one of the matrix), planes, and activations' bits."""

    in_features: int
    out_features: int
    groups: int
    depth: int
    activation_bits: int | None


def read_layers(folder: Path) -> dict[str, PackedForm]:
    """The packed layers of a folder by name, with all their tensors there and of the right sizes.

    Raises:
        FileNotFoundError: no folder, or none with a config.json.
        ValueError: (`FormatError`) tensors that are missing or do not fit their description, and what vLLM cannot run:
            another layout, packed embeddings, heads and experts, weights in a rotated basis.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no folder with a config.json; models packed by bittorch are read from folders here, so "
            "download one of a hub first: hf download NAME --local-dir FOLDER"
        )
    values = parse_json(path.read_bytes(), str(path))
    refuse_note(note(values), "vLLM")
    raw, _, metadata = read_shards(folder)
    forms: dict[str, PackedForm] = {}
    for name, tensor in read_own(raw, metadata, str(folder)).items():
        module = name.removesuffix(".weight")
        if isinstance(tensor, OwnBlocks | OwnBase3):
            raise ValueError(f"{folder}: {name} is in {tensor.info.type}, which vLLM cannot run; {ALONE}")
        if not isinstance(tensor, OwnPacked):
            continue
        if name in (EMBEDDING, HEAD) or ".experts." in name:
            what = "an expert" if ".experts." in name else "the embedding or the head"
            raise ValueError(f"{folder}: {name} is packed, and vLLM runs {what} from floats alone; {ALONE}")
        bits = tensor.info.activation_bits
        bits = note(values).get("activation_bits") if bits == "model" else bits
        shape = tensor.scale.shape
        groups = shape[1] if len(shape) == 2 else 0 if shape == (1,) and tensor.info.shape[0] != 1 else 1
        forms[module] = PackedForm(tensor.info.shape[1], tensor.info.shape[0], groups, tensor.depth, bits)
    if not forms:
        raise ValueError(f"{folder} says quant_method bittorch, but describes no packed layer")
    return forms


def joined(names: Sequence[str], forms: dict[str, PackedForm]) -> PackedForm | None:
    """The form of layers that vLLM makes one of, such as q, k and v; None where none of them is packed.

    Raises:
        ValueError: layers of which some are packed and some not, or that differ in more than their outputs.
    """
    found = {name: forms[name] for name in names if name in forms}
    if not found:
        return None
    if absent := [name for name in names if name not in found]:
        raise ValueError(f"vLLM multiplies {', '.join(names)} as one matrix, but {absent[0]} is not packed")
    first = found[names[0]]
    for name, form in found.items():
        # One scale of the matrix is written to all its rows.
        mine, other = ((f.in_features, max(f.groups, 1), f.depth, f.activation_bits) for f in (first, form))
        if mine != other:
            raise ValueError(
                f"vLLM multiplies {', '.join(names)} as one matrix, so they need the same (in_features, groups, depth, "
                f"activation_bits); {names[0]} has {mine}, {name} has {other}. Convert the model with one setting"
            )
    groups = max(first.groups, 1)
    return first._replace(out_features=sum(form.out_features for form in found.values()), groups=groups)


def check_split(name: str, form: PackedForm, columns: int) -> None:
    """Raises ValueError where ``columns`` of each process are no whole bytes, or no whole groups of scales."""
    if columns == form.in_features:
        return
    size = form.in_features // form.groups
    if columns % 4 or (form.groups > 1 and columns % size):
        parts = form.in_features // columns
        unit = size if form.groups > 1 else 4
        raise ValueError(
            f"tensor_parallel_size={parts} leaves {name} {columns} of {form.in_features} columns per process, which "
            f"must be a multiple of {unit}{', its group of columns with one scale' if form.groups > 1 else ''}: take a "
            "smaller tensor_parallel_size, or pipeline_parallel_size instead"
        )
