"""Checkpoints of language models: `open_checkpoint` reads every format that it knows through one interface."""

from bittorch.models.io.checkpoint import (
    Checkpoint,
    PackedWeight,
    TensorInfo,
    open_checkpoint,
)
from bittorch.models.io.errors import FormatError

__all__ = ["Checkpoint", "FormatError", "PackedWeight", "TensorInfo", "open_checkpoint"]
