"""The quantiser of transformers for packed ternary layers, which `register` makes known under ``bittorch``."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from bittorch.hf import calibrated, masters
from bittorch.hf.config import TernaryConfig
from bittorch.hf.experts import DOWN, GATE_UP, PackedExperts, count_of, matrices
from bittorch.hf.selection import chosen_modules, sizes
from bittorch.hf.stored import Files, check_values, metadata_of, place_layers
from bittorch.models.io.hf_config import note, refuse_note
from bittorch.models.linear import linear_of
from bittorch.nn import PackedLayer, TernaryLinear, TernaryLinearInference
from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.utils.export import export_linear_to_inference
from bittorch.utils.transformers_config import METHOD, call_for_packed, is_refused, packed_models

_HALVES = (torch.float16, torch.bfloat16)
_KEYS = ("weight", GATE_UP, DOWN)


def packed_from(weight: Tensor, bias: Tensor | None, name: str, config: TernaryConfig) -> TernaryLinearInference:
    """A packed layer of a dense weight ``(out_features, in_features)``; ValueError where the weight is not finite."""
    linear = linear_of(weight, None if bias is None else bias.detach())
    if config.depth is not None:
        layer = TernaryLinearInference.from_linear(linear, config.depth, config.ternary())
    else:
        packed = export_linear_to_inference(TernaryLinear.from_linear(linear, config.ternary()), name)
        assert isinstance(packed, TernaryLinearInference)
        layer = packed
    layer.name = name
    return layer


def dense_from(layer: TernaryLinearInference, dtype: torch.dtype, transposed: bool) -> nn.Module:
    """A `torch.nn.Linear`, or a `Conv1D`, of what a packed layer holds; to be trained or not, as any other."""
    weight, bias = layer.dequantized_weight(dtype), layer.bias
    with torch.device("meta"):
        if transposed:
            dense: nn.Module = Conv1D(layer.out_features, layer.in_features)
        else:
            dense = nn.Linear(layer.in_features, layer.out_features, bias is not None)
    dense.weight = nn.Parameter(weight.t().contiguous() if transposed else weight)
    if bias is not None:
        dense.bias = nn.Parameter(bias.to(dtype, copy=True))
    return dense


class _Pack(ConversionOps):
    """One dense weight of a checkpoint on its way into the model."""

    def __init__(self, quantizer: TernaryHfQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        full_layer_name: str,
        model: PreTrainedModel,
        missing_keys: set[str],
        **_: Any,
    ) -> dict[str, Any]:
        (value,) = input_dict.values()
        weight = value[0] if isinstance(value, list) else value
        name, key = full_layer_name.rpartition(".")[::2]
        module = model.get_submodule(name)
        if key != "weight":
            self._pack_experts(model, name, key, weight)
            missing_keys.discard(full_layer_name)
            return {}
        expected = sizes(module)
        rows = weight.t().contiguous() if isinstance(module, Conv1D) else weight
        try:
            if tuple(rows.shape[::-1]) != expected:
                raise ValueError(f"the model has {expected[0]} -> {expected[1]}, its weight is {tuple(weight.shape)}")
            layer = packed_from(rows, module.bias, name, self.quantizer.quantization_config)
        except (ValueError, TypeError) as error:  # transformers would put the text into a table, and raise another
            self.quantizer.failed.setdefault(name, str(error))
            return {}
        model.set_submodule(name, self._loaded(layer))
        missing_keys.discard(full_layer_name)
        return {}

    def _loaded(self, layer: PackedLayer) -> PackedLayer:
        """A layer that transformers knows to have its weights."""
        layer.weight_dtype = self.quantizer.dtype
        for buffer in (layer.weight_packed, layer.scale):
            buffer._is_hf_initialized = True  # type: ignore[attr-defined]
        return layer

    def _pack_experts(self, model: PreTrainedModel, name: str, key: str, weight: Tensor) -> None:
        """Packs one of the two tensors of fused experts; with the second the packed ones take their place."""
        fused, layers = model.get_submodule(name), self.quantizer.experts.setdefault(name, {})
        try:
            expected = tuple(getattr(fused, key).shape)
            if tuple(weight.shape) != expected:
                raise ValueError(f"{key} must be {expected}, its weight is {tuple(weight.shape)}")
            for part, matrix in matrices(key, weight):
                packed = packed_from(matrix, None, f"{name}.{part}", self.quantizer.quantization_config)
                layers[part] = self._loaded(packed)
        except (ValueError, TypeError) as error:
            self.quantizer.failed.setdefault(name, str(error))
            return
        if len(layers) == 3 * count_of(fused):
            model.set_submodule(name, PackedExperts(fused, self.quantizer.experts.pop(name)))


class TernaryHfQuantizer(HfQuantizer):
    """See `bittorch.hf.TernaryConfig`; transformers makes it, and calls it while it loads and saves."""

    quantization_config: TernaryConfig

    def __init__(self, quantization_config: TernaryConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.chosen: set[str] = set()
        self.failed: dict[str, str] = {}
        self.experts: dict[str, dict[str, nn.Module]] = {}  # layers of experts that are not all there yet
        self.transposed: set[str] = set()  # those that are a `Conv1D` in the dense model
        self.dtype = torch.float32
        self._files: Files | None = None
        self._strict: Any = None
        self._calibrated: TernaryConfig | None = None  # the caller's, until the model is converted by it

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None, checkpoint_files: Any = None, **_: Any
    ) -> None:
        self.dtype = dtype or torch.get_default_dtype()
        config = self.quantization_config
        self.transposed = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
        if config.record is not None:
            masters.place_layers(model, config.record)
        elif self.pre_quantized:
            refuse_note(note(vars(model.config)), "transformers")
            self._files = Files(checkpoint_files, model)
            place_layers(model, self._files, self.dtype)
        else:
            self.chosen, left = chosen_modules(model, config)
            if config.calibrate is not None:
                calibrated.check_dtype(self.dtype)
                self._calibrated = config
            config = calibrated.without(config)  # the caller's is for other models too
            config.modules_to_not_convert = left
            self.quantization_config = model.config.quantization_config = config
            self._keep_masters(model)

    def _keep_masters(self, model: PreTrainedModel) -> None:
        """Weights reach the quantiser in float32: rounded to a half they would have other thresholds and scales."""
        self._strict = model._keep_in_fp32_modules_strict
        if self.dtype in _HALVES:
            names = {rf"^{re.escape(name)}\.({'|'.join(_KEYS)})$" for name in self.chosen}
            model._keep_in_fp32_modules_strict = {*(self._strict or ()), *names}

    def update_parallel_plan(self, model: PreTrainedModel, plan: dict[str, str]) -> None:
        """Refuses to load parts: transformers would cut weights and not what is packed."""
        wanted = getattr(model.config, "distributed_config", None)
        sizes = {name: getattr(wanted, name, None) for name in ("tp_size", "ep_size", "pp_size")}
        if several := [f"{name}={size}" for name, size in sizes.items() if (size or 1) > 1]:
            raise NotImplementedError(
                f"packed layers are not loaded in parts, got {', '.join(several)}; load the model whole in each "
                "process, then call bittorch.distributed.tensor_parallel_(model, mesh)"
            )

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        name, key = param_name.rpartition(".")[::2]
        dense = self.pre_quantized or self._calibrated is not None
        return not dense and key in _KEYS and name in self.chosen

    def get_quantize_ops(self) -> _Pack:
        return _Pack(self)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        if (record := self.quantization_config.record) is not None:
            masters.finish(model, record)
            return model
        if not self.pre_quantized:
            model._keep_in_fp32_modules_strict = self._strict
            if self._calibrated is not None:
                calibrated.convert_(model, self.chosen, self._calibrated)
                self._calibrated = None
            self._check_converted(model)
        check_values(model, self._files)
        model.add_model_tags(["bittorch", "ternary"])
        return model

    def _check_converted(self, model: PreTrainedModel) -> None:
        if self.failed:
            name, error = next(iter(self.failed.items()))
            raise ValueError(f"cannot convert {name}: {error}")
        modules = dict(model.named_modules())
        packed = PackedLayer | PackedExperts
        if dense := sorted(name for name in self.chosen if not isinstance(modules[name], packed)):
            warnings.warn(
                f"the checkpoint has no weights of {', '.join(dense[:3])}; new layers stay dense: {len(dense)}",
                stacklevel=2,
            )

    def is_serializable(self, **_: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """With adapters beside the packed layers."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """What ``save_pretrained`` writes; tensors that layers share are written for each of them.

        Raises:
            ValueError: masters beside packed layers, which one folder cannot hold.
        """
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}  # adapters alone
        layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, PackedLayer)}
        for name, module in model.named_modules():
            if isinstance(module, TernaryLayer) and module.quantize:
                raise ValueError(
                    f"{name} is a {type(module).__name__} in training, but {next(iter(layers), 'none')} is packed; "
                    "call bittorch.export_for_inference(model) first"
                )
        if not layers:
            self.remove_quantization_config(model)
            return None, {}
        if not isinstance(getattr(model.config, "quantization_config", None), TernaryConfig):
            model.config.quantization_config = self.quantization_config
        state, met = model.state_dict(), set()
        for name, layer in layers.items():
            for key in ("weight_packed", "scale"):
                if id(tensor := getattr(layer, key)) in met and not tensor.is_meta:
                    state[f"{name}.{key}"] = tensor.clone()
                met.add(id(tensor))
        return state, metadata_of(layers)

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        # The configuration has a name after save_pretrained.
        wanted: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
        for name, layer in list(model.named_modules()):
            if isinstance(layer, PackedExperts):
                model.set_submodule(name, layer.fused(wanted))
        for name, layer in list(model.named_modules()):
            if isinstance(layer, TernaryLinearInference):
                dense = dense_from(layer, wanted, name in self.transposed)
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".* becomes an ordinary Linear")
                    model.set_submodule(name, dense)
        return model


def attach(model: nn.Module) -> nn.Module:
    """Lets ``save_pretrained`` of a model of transformers write its packed layers, as ``from_pretrained`` reads them.

    `bittorch.quantize_` with a depth, `bittorch.export_for_inference` and
    `bittorch.load_ternary_inference_checkpoint` call it where bittorch.hf is imported before; call it for models that
    were packed earlier.

    Returns:
        ``model``.

    Raises:
        ValueError: neither the model nor a part of it is a model of transformers with packed layers.
    """
    found = packed_models(model)
    if not found:
        raise ValueError(f"{type(model).__name__} is no model of transformers with packed layers, and holds none")
    for part in found:
        assert isinstance(part, PreTrainedModel)
        if is_refused(part):
            del part.save_pretrained
        config = TernaryConfig()
        part.hf_quantizer = TernaryHfQuantizer(config)
        part.config.quantization_config = copy.copy(config)
        head = part.get_output_embeddings()
        if isinstance(head, PackedLayer):
            part.config.get_text_config().tie_word_embeddings = False  # a packed head is its own
            part.config.tie_word_embeddings = False
        part.add_model_tags(["bittorch", "ternary"])
    return model


def register() -> None:
    """Makes the method known to transformers, once."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(TernaryConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(TernaryHfQuantizer)
    call_for_packed(attach)
