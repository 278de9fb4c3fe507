"""Checkpoints of language models: every known format read through one interface, written, and converted."""

from bittorch.models.io.checkpoint import Checkpoint, TensorInfo
from bittorch.models.io.choices import CheckpointWarning
from bittorch.models.io.conversion import TARGETS, Report, convert, from_memory, save
from bittorch.models.io.errors import FormatError, LossyError
from bittorch.models.io.open import open_checkpoint
from bittorch.models.packed_weight import PackedWeight

__all__ = [
    "TARGETS",
    "Checkpoint",
    "CheckpointWarning",
    "FormatError",
    "LossyError",
    "PackedWeight",
    "Report",
    "TensorInfo",
    "convert",
    "from_memory",
    "open_checkpoint",
    "save",
]
