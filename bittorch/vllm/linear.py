"""Packed products in vLLM's linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase, register_weight_loader_v2_supported_method
from vllm.model_executor.parameter import ChannelQuantScaleParameter, GroupQuantScaleParameter, PackedvLLMParameter

from bittorch.nn import TernaryLinearInference
from bittorch.vllm.layers import PackedForm, check_split
from bittorch.vllm.row_parallel import row_parallel

_UNSET = 0xFF  # four codes 11, which the check after loading finds where no tensor came
_SHARDS = {"q": 0, "k": 1, "v": 2}


@register_weight_loader_v2_supported_method
class PackedLinearMethod(LinearMethodBase):
    """``y = x @ (codes * scale)^T + bias`` by `bittorch.TernaryLinearInference`.

    Parameters while loading: ``weight_packed`` ``(depth, out_features, ceil(in_features / 4))`` uint8 and ``scale``
    float32 ``(depth, out_features)``, with groups one dimension more: the planes of parts that vLLM puts one behind
    the other are then those of the whole.

    Args:
        name: of the layer, for messages.
        form: of all its parts together.
        parts: out_features of each.
        folder: of the model, for messages.
    """

    def __init__(self, name: str, form: PackedForm, parts: Sequence[int], folder: str) -> None:
        self.name, self.form, self.parts, self.folder = name, form, list(parts), folder
        self.columns, self.exact_split = form.in_features, False

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra: Any,
    ) -> None:
        """Empty parameters of this process's share; ValueError where the sizes or the cut do not fit."""
        form, rows = self.form, sum(output_partition_sizes)
        sizes = _sizes(layer, output_size)
        if input_size != form.in_features or self.parts not in (sizes, [sum(sizes)]):
            raise ValueError(
                f"{self.folder}: {self.name} is packed as {form.in_features} -> {self.parts}, but config.json makes it "
                f"{input_size} -> {sizes}"
            )
        check_split(self.name, form, input_size_per_partition)
        self.columns = columns = input_size_per_partition
        loader = extra["weight_loader"]
        packed = torch.full((form.depth, rows, -(-columns // 4)), _UNSET, dtype=torch.uint8)
        weight = PackedvLLMParameter(
            input_dim=2, output_dim=1, packed_dim=2, packed_factor=4, weight_loader=self._by_planes(loader), data=packed
        )
        layer.register_parameter("weight_packed", weight)
        scale: dict[str, Any] = {"output_dim": 1, "weight_loader": self._by_planes(loader)}
        unset = torch.full((form.depth, rows), torch.nan, dtype=torch.float32)
        if form.groups > 1:
            groups = form.groups * columns // input_size
            data = unset.unsqueeze(-1).repeat(1, 1, groups)
            layer.register_parameter("scale", GroupQuantScaleParameter(input_dim=2, data=data, **scale))
        else:
            layer.register_parameter("scale", ChannelQuantScaleParameter(data=unset, **scale))

    def _by_planes(self, loader: Callable[..., None]) -> Callable[..., None]:
        """vLLM's loader, of tensors whose first dimension is that of planes; one scale becomes that of all rows."""

        def load(parameter: nn.Parameter, loaded: Tensor, *shard: Any) -> None:
            part = shard[0] if shard else None
            rows = sum(self.parts) if part is None else self.parts[_SHARDS.get(part, part)]
            if loaded.dim() < 2 and loaded.numel() == 1:
                loaded = loaded.reshape(1).expand(rows)
            loader(parameter, loaded.unflatten(0, (self.form.depth, -1)), *shard)

        return load

    def process_weights_after_loading(self, layer: Any) -> None:
        """Makes the packed layer that multiplies; ValueError for code 11, wrong padding, scales that are not finite."""
        packed, scale = layer.weight_packed.data.flatten(0, 1), layer.scale.data.flatten(0, 1)
        form, rows = self.form, len(packed) // self.form.depth
        options: dict[str, Any] = {
            "groups": scale.shape[1] if scale.dim() == 2 else 1,
            "activation_bits": form.activation_bits,
        }
        inner = TernaryLinearInference(self.columns, rows, bias=False, depth=form.depth, device="meta", **options)
        try:
            inner._check_state({f"{self.name}.weight_packed": packed, f"{self.name}.scale": scale}, f"{self.name}.")
        except RuntimeError as error:
            raise ValueError(f"{self.folder}: {error}; the file is damaged, or lacks a tensor of the layer") from None
        inner.name, inner.weight_packed, inner.scale = self.name, packed, scale
        # As parameters of the layer too: vLLM asks them for their device.
        layer.weight_packed = nn.Parameter(packed, requires_grad=False)
        layer.scale = nn.Parameter(scale, requires_grad=False)
        split = self.columns != form.in_features
        bias = None if layer.skip_bias_add or getattr(layer, "bias", None) is None else layer.bias.data
        self.exact_split = split and form.activation_bits is not None
        if self.exact_split:
            if not layer.reduce_results:
                raise ValueError(
                    f"{self.name}: this model adds the shares of processes itself, which is not exact with quantised "
                    "activations; take tensor_parallel_size=1"
                )
            layer.reduce_results = False  # the product does it, before scale and bias
        elif split and layer.tp_rank > 0:
            bias = None  # added once
        inner.bias = bias
        layer.packed = inner

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product of this process's share; its bias is the one that it was loaded with."""
        inner: TernaryLinearInference = layer.packed
        if self.exact_split:
            return row_parallel(x, inner)
        y: Tensor = inner(x)
        return y


def _sizes(layer: Any, output_size: int) -> list[int]:
    """The outputs of a layer's parts; heads of keys and values that several processes have count once."""
    sizes = list(getattr(layer, "output_sizes", (output_size,)))
    copies = getattr(layer, "num_kv_head_replicas", 1)
    return [sizes[0], *(size // copies for size in sizes[1:])]
