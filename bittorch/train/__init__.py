"""Helpers for any training loop: schedules that are stepped like a learning-rate scheduler."""

from bittorch.train.schedules import QuantWarmup, TernaryAfter, WeightDecayOff

__all__ = ["QuantWarmup", "TernaryAfter", "WeightDecayOff"]
