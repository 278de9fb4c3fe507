"""The folder of a calibrated conversion: the planes of each part of the model that is done, and what they belong to."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bittorch._version import __version__
from bittorch.nn.ternary_layer import gathered
from bittorch.quant import TernaryQuantConfig
from bittorch.utils.replacement import replacing
from bittorch.utils.safetensors_file import write_safetensors

_LIST = "conversion.json"


def _checksum(value: Any) -> int:
    """CRC-32 of tensors, and of whatever holds them."""
    if isinstance(value, Tensor):
        plain = gathered(value).detach().cpu().contiguous()
        start = zlib.crc32(f"{plain.dtype} {tuple(plain.shape)}".encode())
        return zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().data, start)
    if isinstance(value, Mapping):
        return _checksum([part for pair in value.items() for part in pair])
    if isinstance(value, list | tuple):
        return zlib.crc32(json.dumps([_checksum(part) for part in value]).encode())
    return zlib.crc32(repr(value).encode())


def fingerprint(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    configs: Mapping[str, TernaryQuantConfig],
    depths: Mapping[str, int],
    batches: Sequence[Any],
) -> dict[str, Any]:
    """What planes depend on; values of JSON."""
    held = {id(weight) for weight in weights.values()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "bittorch": __version__,
        "model": type(model).__name__,
        "layers": {name: list(weight.shape) for name, weight in weights.items()},
        "weights": _checksum(weights),
        "other weights": _checksum([pair for pair in tensors if id(pair[1]) not in held]),
        "depth": dict(depths),
        "config": {name: configs[name].to_dict() for name in weights},
        "batches": _checksum(batches),
    }


class CalibrationState:
    """The planes of the parts that are done, a file a part.

    Args:
        folder: is made where it is not there.
        conversion: what it is for.

    Raises:
        ValueError: it holds another conversion, whose differences are named, or is no such folder.
    """

    def __init__(self, folder: Path, conversion: Mapping[str, Any]) -> None:
        self.folder = folder
        wanted = json.loads(json.dumps(conversion))
        listed = folder / _LIST
        if listed.exists():
            try:
                self._compare(json.loads(listed.read_text()), wanted)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{listed} is damaged ({error}); name another folder, or remove it") from None
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is there and holds no conversion; name another folder, or an empty one")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(listed, directory=False, overwrite=True) as path:
                path.write_text(json.dumps(wanted))

    def _compare(self, found: Any, wanted: dict[str, Any]) -> None:
        found = found if isinstance(found, dict) else {}
        other = [key for key in wanted if found.get(key) != wanted[key]]
        if other:
            shown = "; ".join(f"{key} {_short(found.get(key))} there, {_short(wanted[key])} asked for" for key in other)
            raise ValueError(f"{self.folder} holds another conversion: {shown}. Name another folder, or remove it")

    def _file(self, part: str) -> Path:
        return self.folder / f"{part.replace(' ', '-')}.safetensors"

    def load(self, part: str, names: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Planes of the layers of a part; None where it is not done. Raises ValueError for a damaged file."""
        path = self._file(part)
        if not path.exists():
            return None
        try:
            held = load_file(path)
            return {name: (held[f"{name}.weight_packed"], held[f"{name}.scale"]) for name in names}
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it, and its part is converted again") from None

    def save(self, part: str, planes: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """In one step: a file is whole or not there."""
        tensors = {}
        for name, (packed, scale) in planes.items():
            tensors[f"{name}.weight_packed"], tensors[f"{name}.scale"] = packed.clone(), scale.clone()
        write_safetensors(self._file(part), tensors)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
