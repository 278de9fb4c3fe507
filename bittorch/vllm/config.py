"""The quantization method ``bittorch`` of vLLM: folders that bittorch packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from bittorch.vllm.layers import PackedForm, joined, read_layers
from bittorch.vllm.linear import PackedLinearMethod


@register_quantization_config("bittorch")
class BittorchConfig(QuantizationConfig):
    """What the folder's header says of each layer; config.json says only that it is bittorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = ""
        self.forms: dict[str, PackedForm] = {}

    def get_name(self) -> str:
        """The ``quant_method`` of config.json."""
        return "bittorch"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Those of the ops."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """That of the oldest CUDA device with kernels; CPUs have none, and are not asked."""
        return 75

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Files beside config.json: none."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BittorchConfig:
        """Of config.json's ``quantization_config``, which has nothing more to say."""
        return cls()

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Reads what the folder packs; raises as `read_layers`."""
        self.folder, self.forms = model_name, read_layers(Path(model_name))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The packed product where the folder has the layer, or all that vLLM makes it of; else a dense one."""
        if not isinstance(layer, LinearBase):
            return None
        if prefix in self.forms:
            names = [prefix]
        else:
            parent, _, last = prefix.rpartition(".")
            names = [f"{parent}.{part}" for part in self.packed_modules_mapping.get(last, [last])]
        form = joined(names, self.forms)
        if form is None:
            return UnquantizedLinearMethod()
        return PackedLinearMethod(prefix, form, [self.forms[name].out_features for name in names], self.folder)
