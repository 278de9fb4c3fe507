"""What adapters of PEFT may do with a ternary layer: stay beside it."""

from __future__ import annotations

import functools
from typing import Any, NoReturn

from torch import nn


def keep_apart(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Makes a PEFT layer around a ternary one refuse to merge its adapter."""
    if name == "base_layer" and type(parent).__module__.startswith("peft.") and hasattr(type(parent), "merge"):
        parent.merge = functools.partial(_refuse, type(layer).__name__)  # type: ignore[assignment]


def _refuse(kind: str, *_: Any, **__: Any) -> NoReturn:
    raise TypeError(
        f"a merge adds the adapter to the weight of a {kind}, which then has other codes and scales, so that outputs "
        "change. Keep adapters apart: bittorch.export_for_inference(model) packs the layers and leaves the "
        "adapters beside them, and unload() removes them"
    )
