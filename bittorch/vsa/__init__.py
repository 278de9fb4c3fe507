"""Vectors that bind: random vectors of trits that stand for symbols, and what makes structures of them."""

from bittorch.vsa.capacity import expected_accuracy, expected_similarity
from bittorch.vsa.item_memory import Found, ItemMemory
from bittorch.vsa.similarity import cosine_similarity, dot_similarity, hamming_similarity
from bittorch.vsa.structures import bind_sequence, ngrams, record, sequence
from bittorch.vsa.vectors import bind, bundle, permute, random, superpose, unbind

__all__ = [
    "Found",
    "ItemMemory",
    "bind",
    "bind_sequence",
    "bundle",
    "cosine_similarity",
    "dot_similarity",
    "expected_accuracy",
    "expected_similarity",
    "hamming_similarity",
    "ngrams",
    "permute",
    "random",
    "record",
    "sequence",
    "superpose",
    "unbind",
]
