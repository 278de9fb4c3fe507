"""Language models with ternary weights: their files, and what runs them.

`bittorch.models.io` reads and writes checkpoints and needs nothing beyond bittorch's own requirements.
"""
