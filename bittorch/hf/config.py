"""`TernaryConfig`: what ``from_pretrained`` is to make of a dense model, and what config.json says of a packed one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from bittorch.quant import TernaryQuantConfig
from bittorch.quant.ternary import no_trits
from bittorch.quant.trit_planes import check_depth, check_grid
from bittorch.utils.calibration import Calibration
from bittorch.utils.transformers_config import METHOD, STORED, VERSION
from bittorch.utils.trit_depth import DepthRequest

_QUANTISER = ("method", "threshold_factor", "scale", "granularity", "group_size", "activation_bits")
_RECORD = ("stored", "configs", "layers", "unnamed")  # of saved masters


def _patterns(names: str | Iterable[str] | None, what: str) -> list[str] | None:
    if names is None:
        return None
    if not isinstance(names, Iterable):
        raise TypeError(f"{what} must be names of modules, got {names!r}")
    found = [names] if isinstance(names, str) else list(names)
    if not all(isinstance(name, str) for name in found):
        raise TypeError(f"{what} must be names of modules, got {found!r}")
    for name in found:
        try:
            re.compile(name)
        except re.error as error:
            raise ValueError(f"{what} has {name!r}, which is no regular expression: {error}") from None
    return found


class TernaryConfig(QuantizationConfigMixin):
    """``quantization_config`` for ``from_pretrained`` of transformers: dense weights become packed while they load.

    Linear layers, the ``Conv1D`` of GPT-2, and each projection of fused experts (Mixtral, Qwen3-MoE) become
    `bittorch.TernaryLinearInference`; the logits are those of ``quantize_`` and ``export_for_inference`` bit for bit.
    Everything else stays dense, the router of experts too.

    Args:
        method: a fixed one of `bittorch.TernaryQuantConfig`; default ``twn``. It keeps little of weights that were not
            trained for it: use a depth for those.
        depth: planes of trits instead of a method, 1 to 6: `bittorch.quantize_` with ``depth``.
        calibrate: with a depth: batches that the model is called with, or a `bittorch.Calibration` of them, by whose
            activations the planes are chosen, as in `bittorch.quantize_`. The dense model is loaded whole, in float32,
            and then converted; config.json keeps nothing of it.
        threshold_factor, scale, granularity, group_size, activation_bits: as in `bittorch.TernaryQuantConfig`.
        modules_to_convert: names of modules; None is all. A name, or the whole parts of one such as ``mlp``, stands for
            a module and what is in it, and may be a regular expression, as in transformers.
        modules_to_not_convert: names of modules to leave, by the same rule; None leaves the head, tied weights and the
            last module, as transformers chooses them. Weights of three dimensions that are no experts of gate, up
            and down projections without biases are refused unless they stand here.
        version: of the format, in config.json.
        **record: what `bittorch.quantize_` recorded of the masters that a trained model was saved as.

    Raises:
        ValueError: a newer version, a value that `bittorch.TernaryQuantConfig` refuses, a method that learns its scale,
            a method beside a depth, a depth out of range, calibrate without a depth or without a batch.
        TypeError: an unknown argument, a depth that is not an integer, names that are not strings, batches that are one
            batch.
    """

    def __init__(
        self,
        method: str | None = None,
        *,
        depth: int | None = None,
        calibrate: Calibration | Iterable[Any] | None = None,
        threshold_factor: float | None = None,
        scale: str | None = None,
        granularity: str | None = None,
        group_size: int | None = None,
        activation_bits: int | None = None,
        modules_to_convert: str | Iterable[str] | None = None,
        modules_to_not_convert: str | Iterable[str] | None = None,
        quant_method: str = METHOD,
        version: int = VERSION,
        **record: Any,
    ) -> None:
        if quant_method != METHOD:
            raise ValueError(f"quant_method must be {METHOD!r}, got {quant_method!r}")
        if type(version) is not int or version != VERSION:
            raise ValueError(
                f"the quantization_config has version {version!r:.40}, and this bittorch reads version {VERSION}; "
                "update bittorch"
            )
        if unknown := sorted(record.keys() - set(_RECORD)):
            raise TypeError(f"TernaryConfig has no argument {', '.join(unknown)}")
        if record and record.get("stored") != STORED:
            raise ValueError(
                f"the quantization_config has stored {record.get('stored')!r:.40}, and only {STORED!r} is known"
            )
        self.quant_method: Any = METHOD
        self.version = version
        self.method, self.depth, self.threshold_factor, self.scale = method, depth, threshold_factor, scale
        no_trits(activation_bits, "a TernaryConfig")
        self.granularity, self.group_size, self.activation_bits = granularity, group_size, activation_bits
        self.modules_to_convert = _patterns(modules_to_convert, "modules_to_convert")
        self.modules_to_not_convert = _patterns(modules_to_not_convert, "modules_to_not_convert")
        self.record: dict[str, Any] | None = record or None  # of a folder of masters, which stay to be trained
        self.ternary()
        self.calibrate = DepthRequest(depth=depth, calibrate=calibrate).calibrate

    def ternary(self) -> TernaryQuantConfig:
        """The same as a `bittorch.TernaryQuantConfig`, checked."""
        values = {name: getattr(self, name) for name in _QUANTISER}
        if self.depth is None and self.method is None:
            values["method"] = "twn"
        config = TernaryQuantConfig(**values)
        if self.depth is not None:
            check_depth(self.depth)
            if self.method is not None:
                raise ValueError(f"depth={self.depth} is instead of a method, got method={self.method!r} beside it")
            check_grid(config)
        elif config.learned:
            raise ValueError(
                f"method {config.method!r} learns its scale: load the model dense, call bittorch.quantize_ and train it"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """What config.json gets: what is set."""
        values = {key: value for key, value in vars(self).items() if key not in ("record", "calibrate")}
        return copy.deepcopy({key: value for key, value in values.items() if value is not None} | (self.record or {}))
