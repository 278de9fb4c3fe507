"""Runs a file in onnxruntime beside the packed model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bittorch.onnx.report import Check

_ACCURACY = "session.qdq_matmulnbits_accuracy_level"


def session(path: Path, accuracy_level: int) -> onnxruntime.InferenceSession:
    """The file in onnxruntime, on the CPU; ValueError where it refuses the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry(_ACCURACY, str(accuracy_level))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are private
        raise ValueError(f"onnxruntime {onnxruntime.__version__} refuses the exported file: {error}") from error


def _error(y: Tensor, expected: Tensor) -> float:
    """Relative L2 error; infinite where shapes or places of NaN and infinities differ."""
    if y.shape != expected.shape or y.dtype != expected.dtype:
        return math.inf
    y, expected = y.double(), expected.double()
    finite = expected.isfinite()
    if not torch.equal(y[~finite].nan_to_num(), expected[~finite].nan_to_num()) or not bool(y[finite].isfinite().all()):
        return math.inf
    distance, norm = float((y[finite] - expected[finite]).norm()), float(expected[finite].norm())
    return distance / norm if norm else distance


def _check_compares(expected: Sequence[Tensor]) -> None:
    """Raises where no output has a finite value, and warns of single ones: NaN equals NaN, whatever the file does."""
    blank = [i for i, each in enumerate(expected) if not bool(each.isfinite().any())]
    if len(blank) == len(expected):
        raise ValueError(
            "no output of the model has a finite value for these inputs, so the check of the file would compare "
            "nothing; give args whose outputs are finite"
        )
    if blank:
        warnings.warn(
            f"outputs {', '.join(map(str, blank))} have no finite value for these inputs, so the file is not checked "
            "there",
            stacklevel=6,
        )


def check(run: onnxruntime.InferenceSession, model: nn.Module, args: tuple[Tensor, ...]) -> Check:
    """One run of both; ValueError where they do not even take the same inputs."""
    names = [each.name for each in run.get_inputs()]
    if len(names) != len(args):
        raise ValueError(f"the graph has the inputs {', '.join(names) or 'none'}, but the model takes {len(args)}")
    with torch.no_grad():
        leaves = _pytree.tree_leaves(model(*args))
    expected = [each for each in leaves if isinstance(each, Tensor)]
    for i, each in enumerate(expected):
        if each.dtype == torch.bfloat16:
            raise ValueError(f"output {i} is torch.bfloat16, which NumPy does not have; let the model end in float32")
    try:
        found = run.run(None, {name: arg.numpy() for name, arg in zip(names, args, strict=True)})
    except Exception as error:  # its classes are private
        raise ValueError(
            f"the exported file does not run on inputs {[tuple(arg.shape) for arg in args]}: {error}; if sizes are "
            "fixed in the graph, export with dynamic_batch=False, or name what changes in dynamic_shapes"
        ) from error
    if len(found) != len(expected):
        raise ValueError(f"the file has {len(found)} outputs, but the model {len(expected)}")
    outputs = [torch.from_numpy(each) for each in found]
    pairs: Sequence[tuple[Tensor, Tensor]] = list(zip(outputs, expected, strict=True))
    _check_compares(expected)
    distance = max((_error(*pair) for pair in pairs), default=0.0)
    batch = args[0].shape[0] if args and args[0].dim() else 1
    return Check(batch, all(torch.equal(*pair) for pair in pairs), distance)
