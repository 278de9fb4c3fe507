"""Whole models over several processes: which of their layers are cut, and how."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from bittorch.distributed import layers
from bittorch.distributed.layers import check_alone, check_divides, cut_columns, cut_rows, norm_of_whole
from bittorch.distributed.styles import TernaryColwiseParallel, TernaryRowwiseParallel, check_columns
from bittorch.models.attention import Attention
from bittorch.models.block import MLP
from bittorch.models.decoder import Decoder
from bittorch.models.linear import Concatenated, NormedParts
from bittorch.models.rules import Block, Linear
from bittorch.nn import TernaryLinear, TernaryLinearInference

Steps = Iterator[Callable[[], None]]


def tensor_parallel_(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Gives each process of ``mesh`` its heads, its inner channels and its part of the caches, in place.

    Queries, keys, values, gates and ups are cut by outputs, the projections after them by inputs; embedding, norms and
    head stay whole. All processes call the model with the same tokens and get the same logits: with ``activation_bits``
    and one scale for a tensor or a row, those of one process bit for bit.

    Args:
        model: a `bittorch.models.LanguageModel` whose layers are packed, on each process the same; or a model of
            transformers with ternary layers, packed or to be trained, which is cut as its ``tp_plan`` says.
        mesh: of one dimension.

    Returns:
        ``model``. It cannot be saved any more; attributes such as ``config.num_heads`` of a `LanguageModel` are those
        of the process.

    Raises:
        ValueError: a mesh of more than one dimension; heads, channels or groups that the processes do not divide, or a
            model that is parallel already. Nothing is changed then.
        NotImplementedError: layers that have no parallel form: dense ones, mixtures of experts, a gated DeltaNet,
            rotated weights; a model of transformers without a ``tp_plan``, with norms of what is cut, or, to be
            trained, with norms of heads.
        TypeError: another model.
    """
    layers.check_mesh(mesh)
    if any(isinstance(module, layers.Share) for module in model.modules()):
        raise ValueError(f"the {type(model).__name__} is parallel already")
    if isinstance(model, Decoder):
        steps = list(_decoder_steps(model, mesh))
    elif hasattr(model, "tp_plan") and hasattr(model, "config"):
        steps = list(_plan_steps(model, mesh))
    else:
        raise TypeError(
            f"tensor_parallel_ takes a LanguageModel or a model of transformers, got {type(model).__name__}; give "
            "others to parallelize_module with the styles of bittorch.distributed"
        )
    for step in steps:
        step()
    return model


class WholeRowNorm(nn.Module):
    """``norm`` of rows of which each process has a part, which it gets back."""

    mesh: DeviceMesh

    def __init__(self, norm: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.norm = norm
        self.__dict__["mesh"] = mesh

    def forward(self, x: Tensor) -> Tensor:
        return norm_of_whole(self.norm, x, self.mesh)


def _decoder_steps(model: Decoder, mesh: DeviceMesh) -> Steps:
    config, count = model.config, mesh.size()
    if config.hadamard is not None:
        raise NotImplementedError(
            "a model with rotated weights (prism.hadamard) has no parallel form; run it in one process"
        )
    check_divides("num_heads", config.num_heads, mesh)
    check_divides("num_kv_heads", config.num_kv_heads, mesh)
    for index, layer in enumerate(model.layers):
        for name, block in (("self_attn", layer.self_attn), ("mlp", layer.mlp)):
            where = f"layers.{index}.{name}"
            if isinstance(block, Attention):
                yield from _block_steps(block, where, "qkv_proj", "o_proj", "attn_sub_norm", mesh)
                yield functools.partial(_fewer_heads, block, count)
            elif isinstance(block, MLP):
                yield from _block_steps(block, where, "gate_up_proj", "down_proj", "ffn_sub_norm", mesh)
            else:
                raise NotImplementedError(
                    f"{where} is a {type(block).__name__}, which has no parallel form; run the model in one process"
                )
    own = dataclasses.replace(config, num_heads=config.num_heads // count, num_kv_heads=config.num_kv_heads // count)
    yield functools.partial(setattr, model, "config", own)  # caches are made of it
    yield functools.partial(model.__dict__.__setitem__, "save_pretrained", _refuse_to_save)


def _fewer_heads(block: Attention, count: int) -> None:
    block.heads //= count
    block.kv_heads //= count


def _refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("the model is one process's part of a parallel one; save it before tensor_parallel_")


def _block_steps(block: Block, where: str, first: str, last: str, norm: str, mesh: DeviceMesh) -> Steps:
    """Cuts what ``first`` gives and ``last`` takes, and lets the norm between them see whole rows."""
    rule = block.rules[first]
    assert isinstance(rule, Linear)
    yield from _outputs(getattr(block, first), [part.rows for part in rule.parts], f"{where}.{first}", mesh)
    yield from _inputs(block, last, f"{where}.{last}", mesh)
    own = getattr(block, norm)
    if not isinstance(own, nn.Identity) and not block.fuse:  # a fused norm goes to the layer, which sees whole rows
        yield functools.partial(setattr, block, norm, WholeRowNorm(own, mesh))


def _outputs(module: nn.Module, sizes: list[int], where: str, mesh: DeviceMesh) -> Steps:
    """Cuts each of the matrices that stand side by side in a layer."""
    if isinstance(module, Concatenated | NormedParts):
        for part, size in zip(module.parts, sizes, strict=True):
            yield from _outputs(part, [size], where, mesh)
        return
    layer, rank, begin, rows = _packed(module, where), mesh.get_local_rank(), 0, []
    for size in sizes:
        check_divides(f"{where}: rows", size, mesh)
        own = size // mesh.size()
        rows.append(torch.arange(begin + rank * own, begin + (rank + 1) * own, device=layer.weight_packed.device))
        begin += size
    yield functools.partial(cut_rows, layer, torch.cat(rows), mesh)


def _inputs(block: Block, name: str, where: str, mesh: DeviceMesh) -> Steps:
    module = getattr(block, name)
    if isinstance(module, NormedParts):
        for index, norm in enumerate(module.norms):
            if not module.fuse:
                yield functools.partial(module.norms.__setitem__, index, WholeRowNorm(norm, mesh))
        (module,) = module.parts
    layer = _packed(module, where)
    check_columns(layer, mesh)
    yield functools.partial(cut_columns, layer, mesh)


def _packed(module: nn.Module, where: str) -> TernaryLinearInference:
    try:
        check_alone(module)
        assert isinstance(module, TernaryLinearInference)
    except TypeError:
        raise NotImplementedError(f"{where} is a {type(module).__name__}; only packed layers are cut") from None
    return module


_STYLES: dict[str, tuple[type[ParallelStyle], type[ParallelStyle]]] = {  # of ternary layers, of dense ones
    "colwise": (TernaryColwiseParallel, ColwiseParallel),
    "rowwise": (TernaryRowwiseParallel, RowwiseParallel),
}
_OF_HEADS = "replicated_with_grad_allreduce"
_WHOLE = ("colwise_gather_output", "colwise_rep", "embedding_rowwise", "replicate", _OF_HEADS)
"""What may stay whole: it takes whole inputs and gives whole outputs, or is of one head."""


def _plan_steps(model: nn.Module, mesh: DeviceMesh) -> Steps:
    plan: Any = model.tp_plan
    if not plan:
        raise NotImplementedError(f"{type(model).__name__} has no tp_plan; give parallelize_module a plan of your own")
    config: Any = model.config
    config = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        if (heads := getattr(config, name, None)) is not None:
            check_divides(name, heads, mesh)
    found, training = 0, any(isinstance(module, TernaryLinear) for module in model.modules())
    for name, module in model.named_modules():
        if name.endswith("sub_norm"):
            raise NotImplementedError(f"{name} is a norm of what is cut; use bittorch.models.LanguageModel")
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        ternary = isinstance(module, TernaryLinear | TernaryLinearInference)
        if style in _STYLES and (ternary or isinstance(module, nn.Linear)):
            found += ternary
            yield _styled(name, module, style, ternary, mesh)
        elif style is not None and (style not in _WHOLE or (training and style == _OF_HEADS)):
            raise NotImplementedError(f"{name}, a {type(module).__name__}, has the style {style!r} in the tp_plan")
    if not found:
        raise ValueError(f"{type(model).__name__} has no ternary layers that its tp_plan cuts")


def _styled(name: str, module: nn.Module, style: str, ternary: bool, mesh: DeviceMesh) -> Callable[[], None]:
    made = _STYLES[style][0 if ternary else 1]()
    if isinstance(module, TernaryLinear | TernaryLinearInference):
        check_alone(module)
        if style == "rowwise":
            check_columns(module, mesh)
        else:
            check_divides(f"{name}: out_features", module.out_features, mesh)

    def step() -> None:
        made._apply(module, mesh)

    return step
