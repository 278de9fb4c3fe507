"""What a model of transformers says of its ternary layers when it is saved; transformers itself is not imported.

`save_pretrained` writes the full-precision masters of trained ternary layers. They are another model than the trained
one, so config.json must say how they are quantised. When transformers writes that file, it calls
``config.quantization_config.to_dict()``, and a `TernaryRecord` answers from the layers as they are then.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from bittorch.nn import PackedLayer
from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.quant import TernaryQuantConfig

METHOD, STORED, VERSION = "bittorch", "masters", 1
_SAMPLES = 4
_saveable: list[Callable[[nn.Module], object]] = []  # `bittorch.hf.attach`, once bittorch.hf is imported


def call_for_packed(attach: Callable[[nn.Module], object]) -> None:
    """Gives models of transformers with packed layers to ``attach``, which makes ``save_pretrained`` write them."""
    _saveable[:] = [attach]


class TernaryRecord:
    """``quantization_config`` of a model whose ternary layers are saved as masters.

    It has no strong reference to a model. A copy of a model has a record of its own layers; a copy of a configuration
    alone has none. Two models may share a configuration, so a layer is told by its name and by some of its weights.
    """

    def __init__(self) -> None:
        self._roots: list[weakref.ref[nn.Module]] = []
        self._frozen: dict[str, Any] | None = None

    def add(self, model: nn.Module) -> None:
        if not any(root is model for root in self._models()):
            self._roots.append(weakref.ref(model))

    def _models(self) -> Iterator[nn.Module]:
        return (model for root in self._roots if (model := root()) is not None)

    def to_dict(self) -> dict[str, Any] | None:
        """What config.json gets; None where no layer is ternary.

        Each layer has its name, the number of its configuration, and ``sample``, some of its weights, which tell
        whether a file's weights are those of the layer. ``unnamed`` counts the layers of parts that were converted
        without the model around them.
        """
        configs: list[TernaryQuantConfig] = []
        layers: list[dict[str, Any]] = []
        named: set[int] = set()
        parts: set[int] = set()
        for model in self._models():
            for name, layer in _ternary(model):
                if not _saves(model):
                    parts.add(id(layer))
                    continue
                named.add(id(layer))
                if layer.config not in configs:
                    configs.append(layer.config)
                number = configs.index(layer.config)
                layers.append({"name": name, "config": number, "sample": sample(layer.weight)})
        unnamed = len(parts - named)
        if not layers and not unnamed:
            return self._frozen
        described = [config.to_dict() for config in configs]
        record = {"configs": described, "layers": layers, "unnamed": unnamed}
        return {"quant_method": METHOD, "stored": STORED, "version": VERSION, **record}

    def __deepcopy__(self, memo: dict[int, Any]) -> TernaryRecord:
        copied = TernaryRecord()
        for model in self._models():
            if isinstance(twin := memo.get(id(model)), nn.Module):
                copied.add(twin)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, which would otherwise take the model along: what is known now, without what training changes."""
        values = self.to_dict()
        if values is not None:
            values["layers"] = [{**entry, "sample": []} for entry in values["layers"]]
        return {"_roots": [], "_frozen": values}


def sample(weight: torch.Tensor) -> list[float]:
    """Some weights at fixed places; none of a weight that is sharded or has no values here."""
    if hasattr(weight, "full_tensor") or weight.is_meta or weight.dim() < 2 or not weight.numel():
        return []
    flat = weight.detach().flatten()
    places = [len(flat) * i // _SAMPLES + (len(flat) - 1) // _SAMPLES // 2 for i in range(min(_SAMPLES, len(flat)))]
    values: list[float] = flat[places].double().tolist()
    return values


def read_record(record: Mapping[str, Any]) -> list[tuple[str, TernaryQuantConfig, list[float]]]:
    """Name, configuration and sample of each layer that a `TernaryRecord` gave; ValueError for a damaged one."""
    try:
        configs = [TernaryQuantConfig.from_dict(values) for values in record["configs"]]
        layers = [
            (entry["name"], configs[entry["config"]], [float(value) for value in entry["sample"]])
            for entry in record["layers"]
        ]
        if others := [name for name, _, _ in layers if not isinstance(name, str)]:
            raise TypeError(f"a layer has the name {others[0]!r:.40}")
    except KeyError as error:
        raise ValueError(f"the quantization_config of bittorch is damaged: it has no {error}") from None
    except (IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the quantization_config of bittorch is damaged: {error}") from None
    return layers


def is_sample(recorded: list[float], stored: list[float], dtype: torch.dtype) -> bool:
    """Whether a recorded `sample`, where there is one, is that of a weight that was stored in ``dtype``."""
    return not recorded or torch.tensor(recorded, dtype=torch.float64).to(dtype).double().tolist() == stored


def _saves(model: nn.Module) -> bool:
    """Whether a module is a whole model of transformers, or a part that can be saved alone."""
    wraps = type(model).__module__.startswith("peft.")  # writes adapters, under names of its own
    return hasattr(type(model), "save_pretrained") and _has_config(model) and not wraps


def _has_config(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    return callable(getattr(config, "to_dict", None)) and callable(getattr(config, "save_pretrained", None))


def _ternary(model: nn.Module) -> Iterator[tuple[str, TernaryLayer]]:
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, TernaryLayer) and layer.quantize:
            yield name, layer


def note_for_transformers(model: nn.Module) -> None:
    """After a conversion: ``save_pretrained`` records trained ternary layers, and writes or refuses packed ones."""
    _record(model)
    found = packed_models(model)
    if found and _saveable:
        _saveable[0](model)
        return
    for module in found:
        module.save_pretrained = functools.partial(_refuse, type(module).__name__)  # type: ignore[assignment]


def packed_models(model: nn.Module) -> list[nn.Module]:
    """The models of transformers, inside ``model`` too, that have packed layers."""
    return [m for m in model.modules() if _saves(m) and any(isinstance(layer, PackedLayer) for layer in m.modules())]


def _record(model: nn.Module) -> None:
    """Makes ``config.json`` say which layers are ternary, for models of transformers; nothing for others."""
    met: set[int] = set()
    for module in model.modules():
        config: Any = getattr(module, "config", None) if _saves(module) or module is model else None
        if config is None or id(config) in met or not _has_config(module):
            continue  # parts of a model share its configuration
        met.add(id(config))
        present = getattr(config, "quantization_config", None)
        if isinstance(present, dict) and present.get("quant_method") == METHOD:
            present = None  # of the file that the model came from
        if present is None:
            present = config.quantization_config = TernaryRecord()
        if isinstance(present, TernaryRecord):
            present.add(module)


def is_refused(model: nn.Module) -> bool:
    """Whether ``save_pretrained`` of this model raises, because it was packed without bittorch.hf."""
    return getattr(vars(model).get("save_pretrained"), "func", None) is _refuse


def _refuse(name: str, *_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(
        f"this {name} has packed ternary layers, which transformers alone would load as random weights. Call "
        "bittorch.hf.attach(model) after `import bittorch.hf`, and save_pretrained writes them; or write it with "
        "bittorch.save_ternary_inference_checkpoint(model, path), or, where bittorch.models supports the architecture, "
        "with bittorch.models.LanguageModel.from_transformers(model).save_pretrained(path)"
    )
