"""The decoder: token numbers in, logits out. It knows no text and no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bittorch.models import architectures, rules
from bittorch.models.batch import Batch
from bittorch.models.config import HEAD, ModelConfig
from bittorch.models.hadamard import Basis
from bittorch.models.kv_cache import KVCache
from bittorch.models.norm import RMSNorm
from bittorch.models.rope import Rotation, rope_frequencies, rope_magnitude
from bittorch.models.rules import Block, Source
from bittorch.models.tables import Embedding, Head


class Decoder(Block):
    """A stack of layers between an embedding and a head, without weights until `fill`.

    The architecture of the configuration says what the layers are.

    Args:
        config: sizes and rules.
        dtype: of activations, and of keys and values where ``kv_dtype`` does not say another.

    Attributes:
        kv_dtype: of the keys and values of new caches; None for ``dtype``.

    Raises:
        ValueError: an architecture that is not in the register.
    """

    embed_tokens: nn.Module
    norm: RMSNorm
    lm_head: nn.Module

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.kv_dtype: torch.dtype | None = None
        architecture, sizes = architectures.find(config.architecture), (config.vocab_size, config.hidden_size)
        self.embedding_scale, self.logit_scale = architecture.embedding_scale(config, dtype), config.logit_scale
        self.hold("embed_tokens", Embedding("model.embed_tokens", *sizes))
        self.layers = nn.ModuleList(architecture.layer(config, index) for index in range(config.num_layers))
        self.hold("norm", rules.Norm("model.norm", config.hidden_size, config.rms_norm_eps, config.norms_from_one))
        self.hold("lm_head", Head("lm_head", *sizes, tied="model.embed_tokens" if config.tie_embeddings else None))
        self.embedding_basis: Basis | None = None
        self.head_basis: Basis | None = None
        self.frequencies: Tensor
        self.local_frequencies: Tensor | None
        self.magnitude = rope_magnitude(config)
        self.eval()

    def fill(self, source: Source) -> None:
        """Takes all weights, and their device."""
        rules.fill(self, source)
        self.register_buffer("frequencies", rope_frequencies(self.config).to(self.device), persistent=False)
        local = None
        if theta := self.config.local_rope_theta:
            local = rope_frequencies(dataclasses.replace(self.config, rope_theta=theta, rope_scaling=None))
        self.register_buffer("local_frequencies", None if local is None else local.to(self.device), persistent=False)
        if (hadamard := self.config.hadamard) is not None:
            size, device = self.config.hidden_size, self.device
            self.embedding_basis = hadamard.basis(size, device) if hadamard.embedding else None
            self.head_basis = hadamard.basis(size, device) if HEAD in hadamard.weights else None
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def new_cache(self, rows: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache for ``rows`` sequences of up to ``capacity`` tokens, the context of the model by default."""
        capacity = self.config.max_positions if capacity is None else capacity
        return KVCache(self.config, rows, capacity, device=self.device, dtype=self.dtype, kv_dtype=self.kv_dtype)

    def forward(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of every token.

        Args:
            input_ids: ``(rows, tokens)`` of int64.
            cache: keys and values before these tokens, to which theirs are added; None for none.

        Returns:
            ``(rows, tokens, vocab_size)``.

        Raises:
            ValueError: another shape, no token, token numbers outside the vocabulary, no room in the cache.
        """
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be (rows, tokens), got {tuple(input_ids.shape)}")
        rows, count = input_ids.shape
        return self.step(input_ids.flatten(), [count] * rows, cache).unflatten(0, (rows, count))

    def step(
        self,
        tokens: Tensor,
        counts: Sequence[int],
        cache: KVCache | None = None,
        *,
        rows: Sequence[int] | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of sequences of any lengths, which stand one behind the other without padding.

        Each sequence attends to its own tokens as it would alone. Packed layers give each token the same bits in any
        company; dense ones depend on the number of tokens in a call through the matrix product that torch chooses.

        Args:
            tokens: ``(sum of counts,)`` of int64.
            counts: tokens of each sequence.
            cache: keys and values before these tokens, to which theirs are added; None for none.
            rows: the row of the cache of each sequence; all in order by default.
            last_only: logits of each sequence's last token alone.

        Returns:
            ``(sum of counts, vocab_size)``, or with ``last_only`` ``(sequences, vocab_size)``.

        Raises:
            ValueError: as `forward`.
        """
        batch = Batch.of(counts, cache, rows)
        x = self.hidden_states(tokens, batch)
        if last_only and len(x) != len(batch.counts):
            x = x[batch.last(self.device)]
        return self.logits(x)

    def hidden_states(self, tokens: Tensor, batch: Batch) -> Tensor:
        """What the last layer gives, ``(tokens, hidden_size)``; arguments and errors as of `step`."""
        self._check(tokens, batch)
        if batch.cache is not None:
            batch.cache.begin(batch.rows)
        x = self.embedded(tokens)
        rotation = self.rotation(batch)
        for layer in self.layers:
            x = layer(x, rotation, batch)
        if batch.cache is not None:
            batch.cache.advance(batch.rows, batch.counts)
        return x

    def rotation(self, batch: Batch) -> Rotation:
        """What the layers turn the queries and keys of these tokens by."""
        positions = batch.positions(self.device)
        rotation = Rotation(self.frequencies, positions, self.dtype, self.magnitude)
        if self.local_frequencies is not None:
            rotation.local = Rotation(self.local_frequencies, positions, self.dtype)
        return rotation

    def embedded(self, tokens: Tensor) -> Tensor:
        """What the first layer gets, ``(tokens, hidden_size)``."""
        x = self.embed_tokens(tokens).to(self.dtype)
        x = x if self.embedding_basis is None else self.embedding_basis.back(x)
        return x if self.embedding_scale == 1 else x * self.embedding_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits ``(tokens, vocab_size)`` of `hidden_states`, or of some of them."""
        x = self.norm(hidden)
        if self.logit_scale != 1:
            x = x / self.logit_scale
        logits: Tensor = self.lm_head(x if self.head_basis is None else self.head_basis(x))
        return logits

    def _check(self, tokens: Tensor, batch: Batch) -> None:
        if tokens.shape != (sum(batch.counts),):
            raise ValueError(f"tokens must be ({sum(batch.counts)},) for counts={batch.counts}, got {tokens.shape}")
        longest = max(batch.lengths)
        if longest > self.config.max_positions:
            context = self.config.max_positions
            raise ValueError(f"the model has a context of {context} tokens, got a sequence of {longest}; shorten it")
        if not tokens.is_cuda and not bool(((tokens >= 0) & (tokens < self.config.vocab_size)).all()):
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(f"token numbers must be from 0 to {self.config.vocab_size - 1}, got {low} to {high}")


def products(config: ModelConfig) -> dict[str, int]:
    """The canonical name of every weight of a product of such a model, a tied head's too, and its columns."""
    return rules.products(Decoder(config))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The canonical name of every tensor of such a model, biases included, and its shape."""
    return rules.tensor_shapes(Decoder(config))
