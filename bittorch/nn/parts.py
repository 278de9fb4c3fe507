"""The steps of a training layer as functions of tensors: codes first, where their gradient is not straight through."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.nn.ternary_activations import fake_ternary
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig, learned

QuantizerArgs = tuple[str, str, float, str, int]
"""What `TernaryQuantConfig.op_args` gives."""

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_not_sharded(x: Tensor, weight: Tensor) -> None:
    """Raises NotImplementedError for DTensors, in other words than torch's, which has no sharding of these ops."""
    if "DTensor" in (type(x).__name__, type(weight).__name__):  # by name: the class takes long to import
        raise NotImplementedError(
            "the ternary products do not take a DTensor, such as tensor parallelism makes of weights or inputs; "
            "gather it with .full_tensor(), shard with fully_shard, which gathers weights before each forward, or use "
            "the parallel styles of bittorch.distributed"
        )


def check_backend_of(x: Tensor, weight: Tensor, backend: str) -> None:
    """Raises where the backend does not take the device of ``x`` or the dtype of the layer."""
    check_not_sharded(x, weight)
    if backend == "cuda" and not x.is_cuda:
        raise RuntimeError(f"backend='cuda', but the input is on {x.device}; move it with .to('cuda')")
    if weight.dtype == torch.float64 and backend != "python":
        raise TypeError(no_float64("the weight"))


def in_transform() -> bool:
    """Whether a transform of torch.func runs: it differentiates no autograd node of C++, which the kernels have, so the
    value of a kernel takes the derivatives of the product in plain torch."""
    return torch._C._are_functorch_transforms_active()


def detached(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.detach() for tensor in tensors)


def narrowed_codes(weight: Tensor, quantizer: QuantizerArgs) -> tuple[Tensor, Tensor]:
    """Packed codes and scales of the rows of a weight, without a gradient."""
    return ops.ternary_quantize(narrowed(weight.detach().flatten(1)), *quantizer)


def no_float64(what: str) -> str:
    return (
        f"{what} must be float32, float16 or bfloat16, got torch.float64, which no kernel takes; "
        "cast with .float(), or make the layer with backend='python', which is plain torch"
    )


def no_script(module: nn.Module) -> NoReturn:
    """What torch.jit.script meets; torch's own error would name an annotation."""
    raise NotImplementedError(
        f"torch.jit.script does not compile a {type(module).__name__}; use torch.export, torch.compile, torch.fx, or "
        "torch.jit.trace"
    )


def narrowed(rows: Tensor) -> Tensor:
    """Rows as the quantisers take them: float64 ones in float32, as the reference quantises them."""
    return rows.float() if rows.dtype == torch.float64 else rows


def unpacked(w_packed: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """Codes times scale in the shape and dtype of the weight; their product is rounded to float32 in any case."""
    dtype = like.dtype if like.dtype in _KERNEL_DTYPES else torch.float32
    dense = ops.ternary_unpack(w_packed, scale, like.shape[1:].numel(), dtype)
    return dense.view(like.shape).to(like.dtype)


def blend(start: Tensor, end: Tensor, share: float) -> Tensor:
    """``start + share * (end - start)``: torch.compile keeps a float that multiplies as an input, where that of
    `torch.lerp` is a constant, and so a new graph for each step of a warm-up."""
    return start + share * (end - start)


def blended_input(x: Tensor, activation_bits: int | str, share: float) -> Tensor:
    """``x`` with a share of the quantisation of its last dimension, straight through."""
    if not activation_bits:
        return x
    if isinstance(activation_bits, str):
        rounded = fake_ternary(x)
    else:
        rounded = reference.fake_quantize(x.detach(), activation_bits)
    return reference.straight_through(x, blend(x.detach(), rounded, share) if share < 1 else rounded)


def two_scales(weight: Tensor, step: Tensor, config: TernaryQuantConfig, share: float) -> Tensor:
    """The dense weight of ttq."""
    dense = learned.two_scales(weight.flatten(1), step, float(config.threshold_factor or 0)).view(weight.shape)
    return blend(weight, dense, share) if share < 1 else dense


def codes_of(weight: Tensor, step: Tensor | None, config: TernaryQuantConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, scales, and what stands for the weight: its gradient becomes those of weight and step."""
    rows = weight.flatten(1)
    if step is not None:
        w_packed, scale = learned.quantize_packed(rows, step, config.method)
        routed = learned.route(rows, step, config.method)
    else:
        w_packed, scale = ops.ternary_quantize(narrowed(rows.detach()), *config.op_args())
        routed = learned.clipped(rows, scale) if config.ste == "clipped" else rows
    return w_packed, scale, routed.view(weight.shape)


@torch.no_grad()
def mixed(weight: Tensor, w_packed: Tensor, scale: Tensor, share: float) -> Tensor:
    """The weight with its share of quantisation."""
    quantized = unpacked(w_packed, scale, weight)
    return blend(weight, quantized, share) if share < 1 else quantized
