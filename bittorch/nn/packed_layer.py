"""What the deployed layers share: their buffers, and what may happen to these."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.nn.parts import no_script
from bittorch.nn.weight_stand_in import WeightStandIn
from bittorch.quant.ternary import TERNARY, ActivationBits, check_activation_bits, no_trits
from bittorch.quant.trit_planes import check_depth, check_plane_scales


def check_groups(groups: int, depth: int, **columns: int) -> None:
    """Raises ValueError for scales that do not cut a row of ``columns``, given by their name, or one for all planes."""
    ((name, size),) = columns.items()
    if groups < 0 or (groups > 1 and (size % groups or size // groups % 4)):
        raise ValueError(f"groups={groups} do not cut {name}={size} into equal multiples of 4")
    if groups == 0 and depth != 1:
        raise ValueError(f"groups=0 is one scale for all rows, but each of depth={depth} planes has its own; use 1")


def groups_of(weight_packed: Tensor, scale: Tensor) -> int:
    """Scales of a row; 0 where all rows have a single one."""
    if scale.dim() == 2:
        return scale.shape[1]
    return 0 if len(scale) == 1 and len(weight_packed) != 1 else 1


class PackedLayer(nn.Module):
    """Buffers only: ``weight_packed`` ``(depth * rows, ceil(columns / 4))`` uint8, ``scale`` float32, ``bias`` or None.

    ``.half()`` and ``.to(dtype)`` cast the bias and leave codes and scale as they are. ``weight`` is a tensor without
    values: models that ask a layer for ``weight.dtype``, ``.device`` or ``.shape`` get what the dense layer would say.
    """

    depth: int = 1  # of the class, for layers that were pickled without one
    takes_trits: ClassVar[bool] = False
    """Whether there is a product with ``activation_bits="ternary"``."""
    name: str = ""
    """Its name in the model, for messages; export, conversion and loading set it."""
    weight_dtype: torch.dtype = torch.float32
    """The dtype that the dense weight had, or would have after the casts since."""
    weight_packed: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        rows: int,
        columns: int,
        bias: bool,
        scale_groups: int,
        activation_bits: ActivationBits,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        depth: int = 1,
    ) -> None:
        super().__init__()
        if depth != 1 or not self.takes_trits:
            no_trits(activation_bits, f"a {type(self).__name__}" + f" of depth {depth}" * self.takes_trits)
        if activation_bits != TERNARY:
            check_activation_bits(activation_bits, columns)
        if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:  # what is no dtype, torch refuses
            raise TypeError(f"dtype, of the bias, must be float32, float16 or bfloat16, got {dtype}")
        self.activation_bits = activation_bits
        self.weight_dtype = dtype or torch.get_default_dtype()
        self.depth = check_depth(depth)
        planes = self.depth * rows
        scale_shape = (1,) if scale_groups == 0 else (planes,) if scale_groups == 1 else (planes, scale_groups)
        packed_shape = planes, (columns + 3) // 4
        self.register_buffer("weight_packed", torch.zeros(packed_shape, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.zeros(scale_shape, dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(rows, dtype=dtype, device=device) if bias else None)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":  # models ask for weight.dtype: ViT and CLIP of their patches, T5 of wo
            return self._stand_in()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":  # a parameter of this name would be saved, and never used: tie_weights of transformers
            warnings.warn(
                f"{self._called()} is packed and keeps its codes: a weight that is set on it, to tie or to initialise "
                "it, is not taken",
                stacklevel=2,
            )
            return
        super().__setattr__(name, value)

    def _called(self) -> str:
        """What messages call the layer."""
        return self.name or f"a {type(self).__name__} {'x'.join(map(str, self._weight_shape()))}"

    def _stand_in(self) -> Tensor:
        shape = self._weight_shape()
        if torch.compiler.is_dynamo_compiling():  # which can trace no tensor without values, save on the meta device
            return torch.empty(shape, dtype=self.weight_dtype, device="meta")
        return WeightStandIn(self._called(), shape, self.weight_dtype, self.weight_packed.device)

    def _weight_shape(self) -> tuple[int, ...]:
        """The shape of the dense weight."""
        return len(self.weight_packed) // self.depth, self.columns

    def __prepare_scriptable__(self) -> NoReturn:
        no_script(self)

    @property
    def columns(self) -> int:
        """Weights of a row."""
        raise NotImplementedError

    def _scale_groups(self) -> int:
        """Scales of a row; 0 when the layer has a single one."""
        return groups_of(self.weight_packed, self.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLayer:
        """Moves all buffers, but no cast changes codes and scale: a rounded scale would change every output."""
        before = {"weight_packed": self.weight_packed, "scale": self.scale}
        super()._apply(fn, recurse)
        self.weight_dtype = fn(torch.empty(0, dtype=self.weight_dtype, device=before["scale"].device)).dtype
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, torch.empty_like(tensor, device=moved.device))
                if tensor.device.type != "meta":
                    getattr(self, name).copy_(tensor)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._check_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _check_state(self, state: dict[str, Any], prefix: str) -> None:
        """Refuses weights that no kernel defines; shapes and missing keys are torch's own errors."""
        packed, scale = state.get(prefix + "weight_packed"), state.get(prefix + "scale")
        if packed is not None and packed.shape == self.weight_packed.shape and packed.device.type != "meta":
            if packed.dtype != torch.uint8:
                raise RuntimeError(f"{prefix}weight_packed must be uint8, got {packed.dtype}")
            try:
                ops.check_packed(packed, self.columns, prefix + "weight_packed")
            except ValueError as error:
                raise RuntimeError(str(error)) from None
        if scale is not None and scale.device.type != "meta":
            if scale.dtype != torch.float32:
                raise RuntimeError(f"{prefix}scale must be float32, got {scale.dtype}")
            if not bool(torch.isfinite(scale).all()):
                raise RuntimeError(f"{prefix}scale must be finite, got NaN or Inf; the checkpoint is damaged")
            if scale.shape == self.scale.shape:
                try:
                    check_plane_scales(scale, self.depth, prefix + "scale")
                except ValueError as error:
                    raise RuntimeError(str(error)) from None
