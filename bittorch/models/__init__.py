"""Language models with ternary weights: their files, and what runs them.

`bittorch.models.io` reads and writes checkpoints and needs nothing beyond bittorch's own requirements; tokenizers and
chat templates need the extra ``lm``.
"""

from bittorch.models.config import ModelConfig
from bittorch.models.generate import Generation, GenerationStats, Piece
from bittorch.models.generation_config import GenerationConfig
from bittorch.models.kv_cache import KVCache, PrefixCache
from bittorch.models.language_model import LanguageModel
from bittorch.models.load import LoadOptions
from bittorch.models.perplexity import Perplexity, perplexity
from bittorch.models.tokenizer import Tokenizer

__all__ = [
    "Generation",
    "GenerationConfig",
    "GenerationStats",
    "KVCache",
    "LanguageModel",
    "LoadOptions",
    "ModelConfig",
    "Perplexity",
    "Piece",
    "PrefixCache",
    "Tokenizer",
    "perplexity",
]
