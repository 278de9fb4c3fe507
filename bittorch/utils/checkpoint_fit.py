"""Whether a model has the places that a checkpoint fills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bittorch.nn import PackedLayer, TernaryEmbeddingInference, TernaryLinearInference
from bittorch.nn.ternary_conv2d_infer import Convolution, PackedConvolution, geometry
from bittorch.utils.batch_norm import FoldedBatchNorm


def sizes_text(layer: PackedLayer) -> str:
    """The sizes of a layer, as messages give them."""
    if isinstance(layer, PackedConvolution):
        return f"in_channels={layer.in_channels}, out_channels={layer.out_channels}, kernel_size={layer.kernel_size}"
    depth = f", depth={layer.depth}" if layer.depth != 1 else ""
    return f"in_features={layer.columns}, out_features={len(layer.weight_packed) // layer.depth}{depth}"


def _text(conv: Convolution | PackedConvolution) -> str:
    sizes = {"in_channels": conv.in_channels, "out_channels": conv.out_channels, **geometry(conv)}
    return f"{type(conv).__name__}({', '.join(f'{name}={value!r}' for name, value in sizes.items())})"


def _check_convolution(module: nn.Module, name: str, layer: PackedConvolution, path: Path) -> None:
    dense = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d) if kind.__name__ in type(layer).__name__)
    is_conv = isinstance(module, dense | type(layer))
    has = _text(module) if is_conv else type(module).__name__  # type: ignore[arg-type]
    if not is_conv or has.partition("(")[2] != _text(layer).partition("(")[2]:
        raise ValueError(f"{path}: {name!r} is a {_text(layer)}, but the model has {has} there")


def check_fits(model: nn.Module, name: str, layer: PackedLayer, path: Path) -> None:
    """Raises where the model has no layer of that name, or one of other sizes."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{path} has a packed layer {name!r}, which the model lacks") from None
    if isinstance(layer, PackedConvolution):
        _check_convolution(module, name, layer, path)
        return
    if isinstance(layer, TernaryEmbeddingInference):
        _check_embedding(module, name, layer, path)
        return
    assert isinstance(layer, TernaryLinearInference)
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not isinstance(module, nn.Linear | TernaryLinearInference) or sizes != (layer.in_features, layer.out_features):
        raise ValueError(
            f"{path}: {name!r} is a linear layer {layer.in_features} -> {layer.out_features}, "
            f"but the model has {type(module).__name__} {sizes[0]} -> {sizes[1]} there"
        )


def _check_embedding(module: nn.Module, name: str, layer: TernaryEmbeddingInference, path: Path) -> None:
    sizes = getattr(module, "num_embeddings", None), getattr(module, "embedding_dim", None)
    same = sizes == (layer.num_embeddings, layer.embedding_dim)
    if not isinstance(module, nn.Embedding | TernaryEmbeddingInference) or not same:
        raise ValueError(
            f"{path}: {name!r} is an embedding {layer.num_embeddings} x {layer.embedding_dim}, but the model has "
            f"{type(module).__name__} {sizes[0]} x {sizes[1]} there"
        )


def folded_norm(model: nn.Module, name: str, fields: Any, path: Path) -> FoldedBatchNorm:
    """What stands where a batch norm was folded into the layer before it, after checking that one was there."""
    try:
        folded = FoldedBatchNorm(**fields)
        module = model.get_submodule(name)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} says that {name!r} is a folded batch norm: {error}") from None
    norms = nn.modules.batchnorm._BatchNorm | FoldedBatchNorm
    if not name or not isinstance(module, norms) or module.num_features != folded.num_features:
        raise ValueError(
            f"{path}: {name!r} is a batch norm of {folded.num_features} channels, folded into the layer before it, but "
            f"the model has {module} there"
        )
    return folded
