"""What fakes check: a meta tensor among real ones makes torch run the fake, whose result would be unwritten memory."""

from torch import Tensor


def check_same_device(x: Tensor, **others: Tensor | None) -> None:
    """Raises RuntimeError where a tensor is not on the device of ``x``."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(f"x is on {x.device} but {name} is on {tensor.device}; move one of them with .to()")
