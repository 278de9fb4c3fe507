"""The training embedding: a table whose rows are ternary where they are read."""

from __future__ import annotations

import dataclasses

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional

from bittorch.nn.parts import check_backend_of, codes_of, mixed, two_scales
from bittorch.nn.ternary_layer import Backend, TernaryLayer, points_to_config
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig


class TernaryEmbedding(TernaryLayer, nn.Embedding):
    """A table of embeddings that trains through ternary rows.

    ``y = (codes * scale)[indices]`` with ``codes, scale`` the quantised ``weight``, an embedding being a row of the
    quantiser. Each forward pass quantises the whole table, and decodes the rows that are read. The gradient is
    straight-through, in the rows that are read. In ``eval()`` the layer gives, bit for bit, what
    `bittorch.export_for_inference` makes of it.

    Args:
        num_embeddings, embedding_dim, padding_idx, device, dtype: as in `torch.nn.Embedding`. The row of padding_idx is
            quantised as it is and gets no gradient.
        max_norm, sparse: None and False, and refused otherwise.
        norm_type, scale_grad_by_freq: as in `torch.nn.Embedding`; norm_type says nothing without max_norm.
        threshold_factor, per_channel, quantize, backend, config: as in `bittorch.TernaryLinear`; there are no
            activations, so ``activation_bits`` of ``config`` does not count.

    Attributes:
        weight_scale, quant_lambda: as in `bittorch.TernaryLinear`.

    Shape:
        ``(...)`` int64 or int32 to ``(..., embedding_dim)`` in the dtype of ``weight``.

    Raises:
        TypeError: a config of another class, a dtype that is not floating.
        ValueError: a bad configuration, groups that do not divide embedding_dim, max_norm, sparse, an unknown backend.
        IndexError: in forward, on a CPU, an index out of range.
        RuntimeError: ``backend="cuda"`` where there is none.

    Source: Li et al. 2016 (ternary weight networks); Bengio et al. 2013 (straight-through estimator).
    """

    bias = None

    @points_to_config
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        threshold_factor: float | None = None,
        per_channel: bool = True,
        quantize: bool = True,
        backend: Backend = "auto",
        config: TernaryQuantConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._configure(config, threshold_factor, per_channel, None, quantize, backend, dtype)
        self.config = dataclasses.replace(self.config, activation_bits=None)
        self.config.check_in_features(embedding_dim)
        _check_rows(max_norm, sparse)
        sizes = num_embeddings, embedding_dim, padding_idx, None, norm_type, scale_grad_by_freq
        super().__init__(*sizes, device=device, dtype=dtype)
        self._set_up(quantize, backend)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, config: TernaryQuantConfig | None = None) -> TernaryEmbedding:
        """A ternary layer that shares the table of ``embedding``.

        Raises:
            TypeError: any other module, a table that is not floating.
            ValueError: as the class.
        """
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding must be a torch.nn.Embedding, got {type(embedding).__name__}")
        names = "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"
        options = {name: getattr(embedding, name) for name in names}
        sizes = embedding.num_embeddings, embedding.embedding_dim
        return cls(*sizes, **options, config=config, device="meta")._sharing(embedding)

    def forward(self, input: Tensor) -> Tensor:
        self._note_call()
        if not self.quantize:
            return super().forward(input)
        step, options = self._leaf_step(), (self.padding_idx, self.scale_grad_by_freq)
        return _rows(input, self.weight, step, self.config, self.backend, self._share, options)


def _check_rows(max_norm: float | None, sparse: bool) -> None:
    if max_norm is not None:
        raise ValueError(f"max_norm={max_norm} scales rows as they are read, which the codes of a row do not follow")
    if sparse:
        raise ValueError(
            "sparse=True asks for sparse gradients, but a table that is quantised as a whole has dense ones; set "
            "sparse=False and take an optimiser for these"
        )


@torch.fx.wrap  # one node to torch.fx, which could not trace the checks
def _rows(
    indices: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    config: TernaryQuantConfig,
    backend: str,
    share: float,
    options: tuple[int | None, bool],
) -> Tensor:
    check_backend_of(weight, weight, backend)
    padding_idx, by_frequency = options

    def read(table: Tensor) -> Tensor:
        return functional.embedding(indices, table, padding_idx, scale_grad_by_freq=by_frequency)

    if weight_scale is not None and not config.packs:
        return read(two_scales(weight, weight_scale, config, share))
    w_packed, scale, routed = codes_of(weight, weight_scale, config)
    if share < 1 or backend == "python":
        return read(reference.straight_through(routed, mixed(weight, w_packed, scale, share)))
    rows = torch.ops.bittorch.ternary_embedding.default(indices, w_packed, scale, weight.shape[1], weight.dtype)
    return reference.straight_through(read(routed), rows)
