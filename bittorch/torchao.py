"""bittorch in torchao: after ``import bittorch.torchao`` its ``quantize_`` takes a `bittorch.TernaryQuantConfig`.

>>> import bittorch.torchao
>>> from torchao.quantization import quantize_
>>> from torchao.quantization.qat import QATConfig
>>> config = bittorch.TernaryQuantConfig(activation_bits=8)
>>> quantize_(model, QATConfig(config, step="prepare"))  # layers to train
>>> quantize_(model, QATConfig(config, step="convert"))  # packed layers, which give the same bits

``quantize_(model, config)`` packs at once, as torchao's own configurations do: what was not trained loses most of its
accuracy by it. ``FqnToConfig`` and the serialisation of configurations take them too. Needs torchao, of the extra
``torchao``.

torchao hands over one layer after the other. So a layer that stands in two places is replaced in the first one alone,
a model that is itself the layer is not replaced (call `prepare` and `convert` with it), and where a layer is refused
those before it are converted. `bittorch.quantize_` and `bittorch.export_for_inference` have none of these limits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

try:
    from torchao.core.config import ALLOWED_AO_MODULES, AOBaseConfig
    from torchao.quantization.qat import QATConfig
    from torchao.quantization.transform_module import _QUANTIZE_CONFIG_HANDLER, register_quantize_module_handler
except ImportError as error:
    raise ImportError(
        f"bittorch.torchao needs torchao>=0.18; pip install 'bittorch[torchao]' brings it ({error})"
    ) from None

from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.quant import TernaryQuantConfig
from bittorch.utils import export_for_inference, quantize_
from bittorch.utils.twins import TWINS

__all__ = ["convert", "prepare"]

_other_qat = _QUANTIZE_CONFIG_HANDLER[QATConfig]


def prepare(module: nn.Module, config: TernaryQuantConfig) -> nn.Module:
    """The layer to train in place of a dense one, whose parameters it shares, by `bittorch.quantize_`.

    Args:
        module: a layer of a kind that `bittorch.quantize_` takes, or what `prepare` made of one by the same
            configuration.
        config: of its weights and activations.

    Raises:
        TypeError: for another kind of module.
        ValueError: for a ternary layer of another configuration.
    """
    if not isinstance(module, TernaryLayer):
        if type(module) not in TWINS:
            kinds = ", ".join(f"torch.nn.{kind.__name__}" for kind in TWINS)
            raise TypeError(f"{kinds} become ternary, got {type(module).__name__}")
        holder = _holder(module)
        quantize_(holder, config, list(holder))
        return next(iter(holder.values()))
    if module.config != config:
        raise ValueError(f"the layer was prepared with {module.config}, got {config}")
    return module


def convert(module: nn.Module, config: TernaryQuantConfig) -> nn.Module:
    """The packed layer of a trained one, or of a dense one; arguments and errors as those of `prepare`."""
    return next(iter(export_for_inference(_holder(prepare(module, config))).children()))


def _holder(layer: nn.Module) -> nn.ModuleDict:
    """The layer in a model of its own, by the name that errors tell; torchao does not say where the layer stands."""
    weight: Tensor = layer.weight  # type: ignore[assignment]  # of a layer with weights
    return nn.ModuleDict({f"the layer with weight {tuple(weight.shape)}": layer})


def _handle(module: nn.Module, config: TernaryQuantConfig, **kwargs: Any) -> nn.Module:
    return convert(module, config)


def _handle_qat(module: nn.Module, config: Any, **kwargs: Any) -> nn.Module:
    """The two steps for configurations of ours, torchao's own handler for all others."""
    if not isinstance(config.base_config, TernaryQuantConfig):
        if isinstance(module, TernaryLayer) and (config.step == "prepare" or config.base_config is None):
            raise ValueError(
                f"{module} is ternary, and this configuration would undo or forget that; convert it with "
                f'QATConfig({module.config}, step="convert"), or leave it out by filter_fn'
            )
        other: nn.Module = _other_qat(module, config, **kwargs)
        return other
    return (prepare if config.step == "prepare" else convert)(module, config.base_config)


AOBaseConfig.register(TernaryQuantConfig)
ALLOWED_AO_MODULES.add("bittorch.quant")
register_quantize_module_handler(TernaryQuantConfig)(_handle)
register_quantize_module_handler(QATConfig)(_handle_qat)
