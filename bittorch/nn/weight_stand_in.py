"""What a packed layer shows as its ``weight``: dtype, device and shape, but no values."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

_READERS = ("numpy", "tolist", "item", "data_ptr", "untyped_storage", "__array__", "__len__", "__iter__")


class WeightStandIn(Tensor):
    """A tensor without storage. RuntimeError, with the name of its layer, when its values are read."""

    layer: str
    _is_hf_initialized = True  # so that transformers draws no first weights for it, as GPT-2 does of its projections

    @staticmethod
    def __new__(cls, layer: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> WeightStandIn:
        made: WeightStandIn = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made.layer = layer
        return made

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"the values of {self.layer}.weight are read, but this layer is packed: it has codes and scales "
            "(weight_packed, scale) and no weight. If the model does not call the layer, leave it dense: skip=... of "
            "quantize_ or export_for_inference"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightStandIn({self.layer!r}, shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        found = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, WeightStandIn)]
        found[0]._refuse()


for _name in _READERS:
    setattr(WeightStandIn, _name, WeightStandIn._refuse)
