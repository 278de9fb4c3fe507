"""The training product: quantise, then multiply by the packed codes."""

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_dtypes(x: Tensor, weight: Tensor) -> None:
    """Raises where the two dtypes differ without autocast, or autocast could not cast ``x``."""
    if x.dtype == weight.dtype:
        return
    castable = x.dtype in _FLOATS or weight.dtype not in _FLOATS
    if not (x.is_meta or torch.is_autocast_enabled(x.device.type)):
        raise RuntimeError(
            f"x and weight must have the same dtype, got {x.dtype} and {weight.dtype}; "
            f"{'cast one, or use autocast' if castable else f'cast x with .to({weight.dtype})'}"
        )
    if not castable:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {x.dtype}; cast it with .to({weight.dtype})")


def check_input(x: Tensor, weight: Tensor) -> None:
    """Raises where ``nn.Linear`` would: the op takes two dtypes, for autocast, and any width of the same bytes."""
    check_dtypes(x, weight)
    if x.dim() == 0 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"x must be (..., {weight.shape[-1]}) for weight {tuple(weight.shape)}, got {tuple(x.shape)}")


def ternary_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    method: str,
    scale_rule: str,
    threshold_factor: float,
    granularity: str,
    group_size: int = 0,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    """``y = x @ (codes * scale)^T + bias`` with ``codes, scale = ternary_quantize(weight)``.

    The product is that of `ternary_linear_packed`, or of `ternary_linear_w2a8` with ``activation_bits``: an exported
    layer gives the same bits. For the backward pass the packed codes are kept, not the dense quantised weight, and with
    ``activation_bits=8`` the int8 activations.

    The gradient is straight-through: ``grad_x = g @ (codes * scale)``, ``grad_weight = g^T @ Q(x)``. On a CPU
    ``grad_x`` is a packed product of ``g * scale`` with the transposed codes, in 24-bit digits with
    ``activation_bits`` and float32, but for a scale per group, where the weight is decoded.

    Args:
        x: ``(..., in_features)`` of the dtype of ``weight``; under autocast ``x`` alone is cast.
        weight: ``(out_features, in_features)`` float32, float16 or bfloat16, the master weight.
        bias: None or ``(out_features,)`` floating.
        method, scale_rule, threshold_factor, granularity, group_size: as in `ternary_quantize`.
        activation_bits: 0 for floating activations, 8, 16 or 24 for integers.
        variant: as in `ternary_linear_packed`.

    Returns:
        ``(..., out_features)`` of the dtype of ``x``. Differentiable once; a second derivative raises RuntimeError.

    Raises:
        TypeError, ValueError, RuntimeError: as in the two ops, and for ``x`` and ``weight`` of different dtypes.

    Source: Bengio et al. 2013 (straight-through estimator).
    """
    check_input(x, weight)
    return torch.ops.bittorch.ternary_linear.default(
        x, weight, bias, method, scale_rule, threshold_factor, granularity, group_size, activation_bits, variant
    )


def ternary_linear_ste(
    x: Tensor,
    weight: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    """`ternary_linear` of codes and scales that the caller made of ``weight``, for quantisers with other gradients.

    The value of ``weight`` does not matter: it receives ``g^T @ Q(x)``, the gradient of ``codes * scale``. Give it the
    master weight, or a tensor whose backward leads that gradient on.

    Args:
        weight: ``(out_features, in_features)``.
        w_packed, scale: as in `ternary_linear_packed`.
        x, bias, activation_bits, variant: as in `ternary_linear`.

    Returns and Raises: as `ternary_linear`.
    """
    check_input(x, weight)
    return torch.ops.bittorch.ternary_linear_ste.default(x, weight, w_packed, scale, bias, activation_bits, variant)
