"""What an export wrote, and how far onnxruntime is from the packed model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """One run of the file beside the packed model.

    Attributes:
        batch: samples; the first dimension of the first input.
        equal: whether all outputs are `torch.equal`.
        error: relative L2 of the output that is farthest off.
    """

    batch: int
    equal: bool
    error: float

    def __str__(self) -> str:
        return f"batch {self.batch}: " + ("equal" if self.equal else f"relative error {self.error:.1e}")


@dataclass(frozen=True)
class OnnxReport:
    """What `bittorch.onnx.export` returns; printed, it is a table.

    Attributes:
        path: of the file.
        format: as it was asked for.
        opset: of the standard operators.
        layers: how each packed layer is stored, by its name.
        checks: runs of onnxruntime beside the packed model.
        nbytes: of the file, with its data file where there is one.
    """

    path: Path
    format: str
    opset: int
    layers: dict[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    nbytes: int = 0

    @property
    def equal(self) -> bool:
        """Whether every run gave the bits of the packed model."""
        return all(check.equal for check in self.checks)

    @property
    def error(self) -> float:
        """The largest relative error of the runs."""
        return max(check.error for check in self.checks)

    def __str__(self) -> str:
        wide = max(map(len, self.layers), default=0)
        lines = [f"{self.path}: {self.format}, opset {self.opset}, {self.nbytes:,} bytes"]
        lines += [f"  {name:<{wide}}  {how}" for name, how in self.layers.items()]
        return "\n".join([*lines, *(f"  {check}" for check in self.checks)])
