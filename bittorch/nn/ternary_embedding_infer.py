"""The deployed embedding: packed 2-bit rows, looked up without decoding the table."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from bittorch import ops
from bittorch.nn.packed_layer import PackedLayer, check_groups, groups_of
from bittorch.nn.parts import check_not_sharded, narrowed
from bittorch.nn.ternary_layer import gathered
from bittorch.nn.ternary_linear_infer import TernaryLinearInference
from bittorch.quant import TernaryQuantConfig
from bittorch.quant.ternary import check_finite
from bittorch.quant.trit_planes import check_grid, pack_trit_planes, unpack_trit_planes


class TernaryEmbeddingInference(PackedLayer):
    """``y = (codes * scale)[indices]`` from packed codes, for inference.

    Buffers only: ``weight_packed`` ``(depth * num_embeddings, ceil(embedding_dim / 4))`` uint8 and ``scale`` float32.
    The result has the dtype that the dense table would have, ``weight.dtype``: ``.half()`` and ``.to(dtype)`` change
    it, and leave codes and scale as they are. No dense copy of the table is made. An index out of range raises
    IndexError on a CPU, and gives a row of NaN on CUDA.

    With a depth the rows are those of all planes, as in `TernaryLinearInference`.

    Args:
        num_embeddings, embedding_dim, device: as in `torch.nn.Embedding`.
        groups: scales of a row: 0 for one scale in all, 1 for one per row, more for groups of
            ``embedding_dim / groups`` columns. Planes have scales of their own, so 0 requires depth 1.
        depth: ternary planes of the table, 1 to 6.
        dtype: of the result.

    Raises:
        TypeError: a depth that is not an integer, a dtype that is not floating.
        ValueError: groups that do not cut embedding_dim into equal multiples of 4, a depth out of range; from
            ``load_state_dict`` RuntimeError, as in `TernaryLinearInference`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        groups: int = 1,
        depth: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_groups(groups, depth, embedding_dim=embedding_dim)
        super().__init__(num_embeddings, embedding_dim, False, groups, None, device, dtype, depth)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, config: TernaryQuantConfig | None = None, *, depth: int | None = None
    ) -> TernaryEmbeddingInference:
        """The table of ``embedding``, quantised without training.

        Args:
            embedding: it is not touched. Its padding row is quantised as it is; gradients are not needed any more.
            config: how rows become ternary; activation_bits does not count.
            depth: None for the quantiser of ``config``, or 1 to 6 for the planes of `bittorch.quant.pack_trit_planes`,
                where granularity and group_size of ``config`` count.

        Raises:
            TypeError: a depth that is not an integer, a table that is not floating.
            ValueError: a table with NaN or Inf or on the meta device, ``max_norm``, which changes rows as they are
                read, a config that only training can follow or that does not fit the sizes.
        """
        config = config or TernaryQuantConfig()
        config.check_in_features(embedding.embedding_dim)
        if embedding.max_norm is not None:
            raise ValueError(f"max_norm={embedding.max_norm} scales rows as they are read, which packed rows do not do")
        weight = gathered(embedding.weight).detach()
        if weight.device.type == "meta":
            raise ValueError("the weight is on the meta device and has no values; load them first")
        if depth is not None:
            check_grid(config)
            rows = pack_trit_planes(weight, depth, *config.grouping)
        elif config.learned:
            raise ValueError(f"method {config.method!r} learns its scale in training; take another, or a depth")
        else:
            rows = ops.ternary_quantize(narrowed(weight), *config.op_args())
            check_finite(weight, rows[1])
        layer = cls.from_packed(*rows, embedding.embedding_dim, depth=depth or 1, dtype=weight.dtype)
        return layer.train(embedding.training)

    @classmethod
    def from_packed(
        cls,
        weight_packed: Tensor,
        scale: Tensor,
        embedding_dim: int,
        *,
        depth: int = 1,
        dtype: torch.dtype | None = None,
    ) -> TernaryEmbeddingInference:
        """A layer of these tensors, which are not copied.

        Args:
            weight_packed, scale: in the format of `bittorch.ops.ternary_embedding`.
            embedding_dim, depth, dtype: as in the class.

        Raises:
            RuntimeError: tensors that do not fit each other, code 11, wrong padding, or a scale that is not finite.
            TypeError, ValueError: as the class.
        """
        num_embeddings, groups = len(weight_packed) // max(1, depth), groups_of(weight_packed, scale)
        layer = cls(num_embeddings, embedding_dim, groups=groups, depth=depth, device="meta", dtype=dtype)
        layer.load_state_dict({"weight_packed": weight_packed, "scale": scale}, assign=True)
        return layer

    def tied_head(self, activation_bits: int | None = None) -> TernaryLinearInference:
        """The layer ``y = x @ (codes * scale)^T`` of the same rows: the head of a language model with tied embeddings.

        Both layers have one set of buffers, which stays one when either is moved, cast, loaded or filled, and when
        a module that holds both is copied or pickled. State dicts have it under both names.

        Args:
            activation_bits: as in `TernaryLinearInference`.
        """
        head = TernaryLinearInference(
            self.embedding_dim,
            self.num_embeddings,
            False,
            groups=self.groups,
            activation_bits=activation_bits,
            depth=self.depth,
            device="meta",
            dtype=self.weight_dtype,
        )
        self.tie(head)
        return head.train(self.training)

    def tie(self, head: PackedLayer) -> None:
        """Gives ``head``, a linear layer of the same sizes without a bias, the buffers of this layer."""
        head.__dict__["_buffers"] = self._buffers  # tensors alone would part where .to() makes new ones

    @property
    def columns(self) -> int:
        return self.embedding_dim

    @property
    def groups(self) -> int:
        """Scales of a row; 0 when the layer has a single one."""
        return self._scale_groups()

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense table ``(num_embeddings, embedding_dim)``, rounded once to ``dtype``."""
        return unpack_trit_planes(self.weight_packed, self.scale, self.depth, self.embedding_dim, dtype)

    def forward(self, input: Tensor) -> Tensor:
        buffers: dict[str, Any] = self._buffers  # as in TernaryLinearInference
        rows = buffers["weight_packed"], buffers["scale"]
        return _rows(input, *rows, self.embedding_dim, self.weight_dtype, self.depth)

    def extra_repr(self) -> str:
        depth = f", depth={self.depth}" if self.depth != 1 else ""
        return f"{self.num_embeddings}, {self.embedding_dim}, groups={self.groups}{depth}"


@torch.fx.wrap  # one node to torch.fx, which could not trace the check
def _rows(
    indices: Tensor, weight_packed: Tensor, scale: Tensor, embedding_dim: int, dtype: torch.dtype, depth: int
) -> Tensor:
    check_not_sharded(indices, weight_packed)
    return torch.ops.bittorch.ternary_embedding.default(indices, weight_packed, scale, embedding_dim, dtype, depth)
