"""Helpers for any training loop: schedules that are stepped like a learning-rate scheduler, and distillation losses."""

from bittorch.train import distill
from bittorch.train.schedules import QuantWarmup, TernaryAfter, WeightDecayOff

__all__ = ["QuantWarmup", "TernaryAfter", "WeightDecayOff", "distill"]
