"""Helpers for any training loop: schedules that are stepped like a learning-rate scheduler, parameter groups,
distillation losses, a learning-rate finder, and recipes."""

from bittorch.train import distill, recipes
from bittorch.train.lr_finder import LearningRates, find_lr
from bittorch.train.parameters import parameter_groups
from bittorch.train.schedules import QuantWarmup, TernaryAfter, WeightDecayOff

__all__ = [
    "LearningRates",
    "QuantWarmup",
    "TernaryAfter",
    "WeightDecayOff",
    "distill",
    "find_lr",
    "parameter_groups",
    "recipes",
]
