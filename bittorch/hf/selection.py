"""Which modules of a model of transformers become packed while its weights load."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from bittorch.hf.config import TernaryConfig
from bittorch.hf.experts import is_fused, widths


def sizes(module: nn.Module) -> tuple[int, int]:
    """in_features and out_features of a linear layer or a `Conv1D`."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def named(name: str, patterns: list[str] | None) -> bool:
    """Whether a pattern names the module or one around it: by transformers' rule, or as whole parts of its name."""
    whole = any(f".{pattern}." in f".{name}." for pattern in patterns or ())
    return whole or (bool(patterns) and not should_convert_module(name, patterns))


def known_as(name: str, prefix: str, known: Container[str]) -> str | None:
    """The name that ``known`` has for a module or tensor, with the prefix of the base model or without; None for none.

    A base model alone has names without it; the same model with a head has it before them.
    """
    return next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in known), None)


def chosen_modules(model: PreTrainedModel, config: TernaryConfig) -> tuple[set[str], list[str]]:
    """Names of the modules to pack, and of those to leave, as config.json is to keep them.

    Raises:
        ValueError: names that no module has, fused weights of another form that are not to be left, groups that do not
            divide a row, no module at all.
    """
    tied = {key.removesuffix(".weight") for pair in model.all_tied_weights_keys.items() for key in pair}
    found = {
        name: module
        for name, module in model.named_modules()
        if (type(module) in (nn.Linear, Conv1D) or is_fused(module)) and name not in tied
    }
    every = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    _check_names(config.modules_to_convert, list(found), "modules_to_convert")
    _check_names(config.modules_to_not_convert, every, "modules_to_not_convert")
    left = HfQuantizer.get_modules_to_not_convert(
        model, config.modules_to_not_convert, list(model._keep_in_fp32_modules or ())
    )
    left = [name.removesuffix(".bias") for name in left]  # of the last module, of which transformers names a parameter
    wanted = config.modules_to_convert

    def takes(name: str) -> bool:
        return not named(name, left) and (wanted is None or named(name, wanted))

    _refuse_experts(model, takes)
    chosen = {name for name in found if takes(name)}
    if not chosen:
        some = ", ".join(list(found)[:3]) or "none"
        raise ValueError(f"TernaryConfig leaves every linear layer of {type(model).__name__} dense; there is {some}")
    for name in sorted(chosen):
        try:
            for columns in widths(found[name]) if is_fused(found[name]) else sizes(found[name])[:1]:
                config.ternary().check_in_features(columns)
        except ValueError as error:
            raise ValueError(f"cannot convert {name}: {error}; name it in modules_to_not_convert to leave it") from None
    return chosen, sorted(left)


def _check_names(patterns: list[str] | None, names: list[str], what: str) -> None:
    for pattern in patterns or ():
        if not any(named(name, [pattern]) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(f"{what} has {pattern!r}, which names nothing that it could; there is {', '.join(near)}")


def _refuse_experts(model: nn.Module, takes: Callable[[str], bool]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) or is_fused(module):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and min(parameter.shape) > 1 and takes(name):
                raise ValueError(
                    f"{name}.{key} holds weights of several matrices in one, {tuple(parameter.shape)}, in a form "
                    "other than gate, up and down projections without biases; leave them dense by "
                    f"modules_to_not_convert=[..., {name.rpartition('.')[2]!r}], or open the model by "
                    "bittorch.models.LanguageModel, which packs experts"
                )
