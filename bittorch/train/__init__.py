"""Helpers for any training loop: schedules that are stepped like a learning-rate scheduler, parameter groups, and
distillation losses."""

from bittorch.train import distill
from bittorch.train.parameters import parameter_groups
from bittorch.train.schedules import QuantWarmup, TernaryAfter, WeightDecayOff

__all__ = ["QuantWarmup", "TernaryAfter", "WeightDecayOff", "distill", "parameter_groups"]
