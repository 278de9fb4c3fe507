"""Ternary layers over several processes, for scripts that torchrun starts.

>>> from torch.distributed.device_mesh import init_device_mesh
>>> from torch.distributed.tensor.parallel import parallelize_module
>>> from bittorch.distributed import TernaryColwiseParallel, TernaryRowwiseParallel
>>> mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
>>> parallelize_module(model, mesh, {"up": TernaryColwiseParallel(), "down": TernaryRowwiseParallel()})

With integer activations two processes give the bits of one: the largest magnitude of a token is the maximum over
processes, products are added as integers, and scale and bias come after. The package is imported by name alone, since
`torch.distributed.tensor` takes long to load.
"""

from bittorch.distributed.layers import (
    ColumnParallelInference,
    ColumnParallelTernaryLinear,
    RowParallelInference,
    RowParallelTernaryLinear,
)
from bittorch.distributed.models import tensor_parallel_
from bittorch.distributed.pipeline import DecoderStage
from bittorch.distributed.products import row_parallel_linear
from bittorch.distributed.rules import register
from bittorch.distributed.styles import TernaryColwiseParallel, TernaryRowwiseParallel

register()

__all__ = [
    "ColumnParallelInference",
    "ColumnParallelTernaryLinear",
    "DecoderStage",
    "RowParallelInference",
    "RowParallelTernaryLinear",
    "TernaryColwiseParallel",
    "TernaryRowwiseParallel",
    "row_parallel_linear",
    "tensor_parallel_",
]
