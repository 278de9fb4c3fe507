"""Adapters of PEFT on ternary layers: kept beside them, or of a form that merges bit for bit.

>>> config = bittorch.hf.peft.register(LoraConfig(r=8, target_modules=["q_proj", "v_proj"]), exact=True)
>>> model = get_peft_model(packed, config)
>>> ...                                                    # Trainer or any loop
>>> model.save_pretrained("adapter")
>>> model = bittorch.hf.peft.load(packed, "adapter")
>>> merged = model.merge_and_unload()                      # with exact=True: the same outputs, bit for bit

PEFT does not write the classes of layers into adapter_config.json, so that `load` is needed in the place of
``PeftModel.from_pretrained``. `bittorch.train.lora_forms` has the formulas; ``k`` is ``lora_alpha / r``.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils import load_peft_weights
from torch import Tensor, nn

from bittorch.nn import TernaryLinear, TernaryLinearInference
from bittorch.train import lora_forms as forms

__all__ = ["TernaryLora", "TernaryLoraExact", "load", "register"]

_MARK = "lora_ternary_scale"
_HUB = ("subfolder", "revision", "token", "cache_dir", "force_download", "local_files_only")  # of finding a file
_INITS = (True, False, "gaussian")


class TernaryLora(Linear):
    """An adapter beside a ternary layer: ``y + k B A x``, or DoRA. It is never merged."""

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        if config.init_lora_weights not in _INITS:
            raise ValueError(
                f"init_lora_weights={config.init_lora_weights!r} changes the weight of the base, which is ternary; use "
                f"one of {', '.join(map(repr, _INITS))}"
            )
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        return {(): None, ("use_dora",): DoraLinearVariant}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        raise TypeError(
            f"an adapter beside a {type(self.get_base_layer()).__name__} has no exact merged form: ternary codes hold "
            "little of a small change. Keep it beside (unload() removes it), or train with "
            "bittorch.hf.peft.register(config, exact=True), which merges bit for bit"
        )

    def unmerge(self) -> None:
        warnings.warn("an adapter beside a ternary layer is never merged; nothing to do", stacklevel=2)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, TernaryLinear | TernaryLinearInference)
        return module.in_features, module.out_features

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        assert isinstance(base_layer, TernaryLinear | TernaryLinearInference)
        return base_layer.weight.device, torch.float32  # adapters train in float32, whatever the base says


class TernaryLoraExact(TernaryLora):
    """An adapter that merges bit for bit: on the grid of packed codes, or inside the quantiser of masters.

    One adapter is active at a time. ``lora_ternary_scale`` has the scales of packed layers; of masters it is empty, and
    says what kind of adapter a file holds.
    """

    adapter_layer_names = (*Linear.adapter_layer_names, _MARK)
    _before: tuple[Tensor, ...] = ()  # what the base was before a merge

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        base = self.get_base_layer()
        forms.check_base(base, self._form, type(base).__name__)
        if config.lora_dropout or config.lora_bias:
            raise ValueError(
                "an adapter that merges exactly changes weights, so it has no lora_dropout and no lora_bias, got "
                f"lora_dropout={config.lora_dropout}, lora_bias={config.lora_bias}"
            )
        if _MARK not in self._modules:
            self.lora_ternary_scale = nn.ParameterDict()
        scale = base.scale.detach().clone() if self._form == "grid" else torch.empty(0, device=base.weight.device)
        self.lora_ternary_scale[adapter_name] = nn.Parameter(scale)
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        return {(): None}

    @property
    def _form(self) -> forms.Form:
        return "inside" if isinstance(self.get_base_layer(), TernaryLinear) else "grid"

    @property
    def refuses_export(self) -> str:
        """Why its base cannot be packed below it; empty where it can."""
        if self._form == "grid" or self.merged:
            return ""
        return "it has an adapter inside its quantiser; call merge_and_unload() first"

    def get_delta_weight(self, adapter: str) -> Tensor:
        return forms.low_rank(self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.scaling[adapter])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.pop("adapter_names", None) is not None:
            raise ValueError("adapters that merge exactly change weights, so a batch cannot mix them by adapter_names")
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else [n for n in self.active_adapters if n in self.lora_A]
        base = self.get_base_layer()
        if not names:
            result: Tensor = base(x, *args, **kwargs)
            return result
        name = self._one(names)
        if self._form == "grid":
            return forms.grid(x, base, self.get_delta_weight(name), self.lora_ternary_scale[name])
        return forms.inside(x, base, self.get_delta_weight(name))

    def _one(self, names: list[str]) -> str:
        if len(names) + len(self.merged_adapters) != 1:
            raise ValueError(
                "adapters that merge exactly were each trained on the base as it is, so they are used one at a time; "
                f"got {', '.join([*self.merged_adapters, *names])}"
            )
        return names[0]

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # type: ignore[override]
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        if not names:
            return
        name, base = self._one(names), self.get_base_layer()
        delta = self.get_delta_weight(name)
        if safe_merge and not bool(torch.isfinite(delta).all() and torch.isfinite(self.lora_ternary_scale[name]).all()):
            raise ValueError(f"adapter {name!r} holds NaN or Inf")
        if self._form == "grid":
            merged = forms.merged_grid(base, delta, self.lora_ternary_scale[name])
            self._before = base.weight_packed, base.scale
            base.weight_packed, base.scale = merged.weight_packed, merged.scale
        else:
            self._before = (base.weight.detach().clone(),)
            base.weight.copy_(forms.merged_inside(base, delta).weight)
        self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Gives the base back what it was, bit for bit."""
        if not self.merged:
            warnings.warn("no adapter is merged; nothing to do", stacklevel=2)
            return
        base = self.get_base_layer()
        if self._form == "grid":
            base.weight_packed, base.scale = self._before
        else:
            base.weight.copy_(self._before[0])
        self._before = ()
        self.merged_adapters.clear()


def register(config: LoraConfig, *, exact: bool = False) -> LoraConfig:
    """Makes PEFT adapt ternary layers by the classes here; call it before ``get_peft_model``.

    Args:
        config: changed in place.
        exact: False keeps adapters beside the layers, with DoRA and dropout where wanted, and refuses to merge them.
            True trains what merges bit for bit: codes and scales of packed layers of one plane, masters inside the
            quantiser of training layers.

    Returns:
        ``config``.

    Raises:
        TypeError: another kind of configuration; PEFT knows custom layers of LoRA alone.
        ValueError: ``target_modules="all-linear"``, by which PEFT finds dense layers alone.
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(f"config must be a peft.LoraConfig, got {type(config).__name__}")
    if config.target_modules == "all-linear":
        raise ValueError(
            "target_modules='all-linear' would leave ternary layers out, because PEFT finds torch's own layers by it; "
            "name them, such as target_modules=['q_proj', 'v_proj']"
        )
    kind = TernaryLoraExact if exact else TernaryLora
    config._register_custom_module({TernaryLinear: kind, TernaryLinearInference: kind})
    return config


def load(model: nn.Module, path: str, adapter_name: str = "default", **options: Any) -> PeftModel:
    """``PeftModel.from_pretrained`` for adapters of ternary layers, or ``load_adapter`` of a model that has some.

    Whether it merges exactly is seen from its tensors.

    Args:
        model: the base that the adapter was trained on; or a model of PEFT, which gets another adapter.
        path: a folder, or a name on the hub.
        adapter_name: what it is called here; it is active then.
        **options: of PEFT's own function, such as ``is_trainable``, ``subfolder`` or ``revision``.

    Raises:
        ValueError: an adapter of another form than those that the model has.
        RuntimeError: shapes that are not those of the model, from PEFT.
    """
    hub = {key: options[key] for key in _HUB if key in options}
    exact = any(_MARK in name for name in load_peft_weights(str(path), device="cpu", **hub))
    if not isinstance(model, PeftModel):
        config = register(LoraConfig.from_pretrained(str(path), **hub), exact=exact)
        return PeftModel.from_pretrained(model, str(path), adapter_name, config=config, **options)
    for name, layer in model.named_modules():
        if isinstance(layer, TernaryLora) and isinstance(layer, TernaryLoraExact) != exact:
            raise ValueError(
                f"{name} has adapters that {'do not ' if exact else ''}merge exactly, and {path} holds one that "
                f"{'does' if exact else 'does not'}; load it on the base alone"
            )
    model.load_adapter(str(path), adapter_name, **options)
    model.set_adapter(adapter_name)
    return model
