"""What fakes check. A meta tensor among real ones makes torch run the fake, whose result would be unwritten memory."""

from torch import Tensor


def check_same_device(x: Tensor, **others: Tensor | None) -> None:
    """Raises RuntimeError where a tensor is not on the device of ``x``."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(f"x is on {x.device} but {name} is on {tensor.device}; move one of them with .to()")


def check_packed_width(w_packed: Tensor, in_features: int) -> None:
    """Raises ValueError where a packed row does not hold ``in_features`` codes."""
    if w_packed.dim() != 2 or w_packed.shape[1] != (in_features + 3) // 4:
        raise ValueError(
            f"w_packed must be (out_features, {(in_features + 3) // 4}) for in_features={in_features}, "
            f"got {tuple(w_packed.shape)}"
        )
