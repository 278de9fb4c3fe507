"""Helpers for any training loop: schedules that are stepped like a learning-rate scheduler, parameter groups,
distillation losses, a learning-rate finder, recipes, and low-rank adapters."""

from bittorch.train import distill, recipes
from bittorch.train.lora import (
    LoraLinear,
    MergeReport,
    adapter_names,
    add_adapters,
    merge_adapters,
    remove_adapter,
    set_adapter,
)
from bittorch.train.lora_files import load_adapter, save_adapter
from bittorch.train.lr_finder import LearningRates, find_lr
from bittorch.train.parameters import parameter_groups
from bittorch.train.schedules import QuantWarmup, TernaryAfter, WeightDecayOff

__all__ = [
    "LearningRates",
    "LoraLinear",
    "MergeReport",
    "QuantWarmup",
    "TernaryAfter",
    "WeightDecayOff",
    "adapter_names",
    "add_adapters",
    "distill",
    "find_lr",
    "load_adapter",
    "merge_adapters",
    "parameter_groups",
    "recipes",
    "remove_adapter",
    "save_adapter",
    "set_adapter",
]
