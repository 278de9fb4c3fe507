"""A decoder-only language model: token numbers in, logits out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bittorch.models.batch import Batch
from bittorch.models.block import DecoderLayer
from bittorch.models.config import ModelConfig
from bittorch.models.io import Checkpoint, Report, open_checkpoint
from bittorch.models.kv_cache import KVCache, PrefixCache
from bittorch.models.load import Loader, LoadOptions
from bittorch.models.norm import RMSNorm
from bittorch.models.rope import Rotation, rope_frequencies

if TYPE_CHECKING:
    from bittorch.models.chat_template import ChatTemplate
    from bittorch.models.generate import Generation, GenerationConfig
    from bittorch.models.tokenizer import Tokenizer


class LanguageModel(nn.Module):
    """A LLaMA or BitNet b1.58 decoder for inference, its linear layers packed or dense.

    Args:
        config: sizes and rules.
        embed_tokens, layers, norm, lm_head: the parts, with their weights.
        dtype: of activations, keys and values.
        tokenizer: None where text is not wanted.

    Example::

        model = LanguageModel.from_pretrained("checkpoint/")
        print(model.generate("The capital of France is")[0])
    """

    def __init__(
        self,
        config: ModelConfig,
        embed_tokens: nn.Embedding,
        layers: Iterable[DecoderLayer],
        norm: RMSNorm,
        lm_head: nn.Module,
        *,
        dtype: torch.dtype,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.tokenizer = config, dtype, tokenizer
        self.embed_tokens, self.layers = embed_tokens, nn.ModuleList(layers)
        self.norm, self.lm_head = norm, lm_head
        self.frequencies: Tensor
        self.register_buffer("frequencies", rope_frequencies(config).to(self.device), persistent=False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        depth: int | None = None,
        group_size: int | None = None,
        activation_bits: int | Literal["auto"] | None = "auto",
        head_depth: int | None = None,
        fuse_norms: bool | Literal["auto"] = "auto",
        tokenizer: bool = True,
        i2_s_layout: str = "128x32",
        hidden_act: str | None = None,
        pre_tokenizer: str | None = None,
    ) -> LanguageModel:
        """A model from a directory of safetensors or one GGUF file, straight to its device.

        Ternary tensors stay packed all the way. On a CPU what needs neither conversion nor joining stays in the mapped
        file, which must not change while the model is in use.

        Args:
            path: as `bittorch.models.io.open_checkpoint` takes it.
            device, dtype, depth, group_size, activation_bits, head_depth, fuse_norms: as in
                `bittorch.models.load.LoadOptions`.
            tokenizer: whether to load the tokenizer too, which needs the extra ``lm``.
            i2_s_layout, hidden_act, pre_tokenizer: what a GGUF file may leave open, as in `open_checkpoint`.

        Warns:
            bittorch.models.io.CheckpointWarning: the checkpoint leaves something open; names it and what is taken.

        Raises:
            FileNotFoundError, bittorch.models.io.FormatError: as `open_checkpoint`; missing tensors are listed.
            TypeError, ValueError: options out of range.
        """
        options = LoadOptions(device, dtype, depth, group_size, activation_bits, head_depth, fuse_norms)
        with open_checkpoint(
            path, i2_s_layout=i2_s_layout, hidden_act=hidden_act, pre_tokenizer=pre_tokenizer
        ) as checkpoint:
            return cls.from_checkpoint(checkpoint, options, tokenizer=tokenizer)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, options: LoadOptions | None = None, *, tokenizer: bool = True
    ) -> LanguageModel:
        """The same from an open checkpoint, which may be closed afterwards."""
        loader = Loader(checkpoint, options or LoadOptions())
        embedding, head = loader.embedding_and_head()
        layers = [loader.layer(index) for index in range(checkpoint.config.num_layers)]
        found = None
        if tokenizer:
            from bittorch.models.tokenizer import Tokenizer

            found = Tokenizer.from_source(checkpoint.tokenizer_source)
        return cls(loader.config, embedding, layers, loader.norm(), head, dtype=loader.dtype, tokenizer=found)

    @classmethod
    def from_transformers(
        cls,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        device: torch.device | str | None = None,
        fuse_norms: bool = False,
    ) -> LanguageModel:
        """A model of transformers as it is in eval mode, its ternary layers packed: trained by `bittorch.quantize_`.

        In float32 on a CPU its logits are those of the model in ``eval()``, bit for bit; docs/language_models.md has
        the conditions. It is a copy: further training of the model does not change it.

        Args:
            model: LlamaForCausalLM, BitNetForCausalLM or a class of the same layers. A layer may be a
                `bittorch.TernaryLinear` with a configuration of its own, packed, or dense.
            tokenizer: of transformers, or a `bittorch.models.Tokenizer`; None where text is not wanted.
            device: of the result; None takes that of the model.
            fuse_norms: True is faster with quantised activations, and rounds once less than the model.

        Raises:
            TypeError: no model of transformers; a wrapped or compiled one; a tokenizer of another kind.
            ValueError: as `bittorch.export_for_inference`; a model without a head.
            bittorch.models.io.FormatError: an architecture that bittorch.models does not support.
        """
        from bittorch.models.from_transformers import checkpoint_of, tokenizer_of

        with checkpoint_of(model, fuse_norms) as checkpoint:
            place = next(model.parameters()).device if device is None else device
            result = cls.from_checkpoint(checkpoint, LoadOptions(place), tokenizer=False)
        result.tokenizer = tokenizer_of(tokenizer, model)
        return result

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def chat_template(self) -> ChatTemplate | None:
        """Of the tokenizer; None where the model was not trained on conversations, or has no tokenizer."""
        return None if self.tokenizer is None else self.tokenizer.chat_template

    def new_cache(self, rows: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache for ``rows`` sequences of up to ``capacity`` tokens, the context of the model by default."""
        capacity = self.config.max_positions if capacity is None else capacity
        return KVCache(self.config, rows, capacity, device=self.device, dtype=self.dtype)

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
        x = self.embed_tokens(tokens).to(self.dtype)
        rotation = Rotation(self.frequencies, batch.positions(self.device), self.dtype)
        for layer in self.layers:
            x = layer(x, rotation, batch)
        if batch.cache is not None:
            batch.cache.advance(batch.rows, batch.counts)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits ``(tokens, vocab_size)`` of `hidden_states`, or of some of them."""
        return self.lm_head(self.norm(hidden))

    def _check(self, tokens: Tensor, batch: Batch) -> None:
        if tokens.shape != (sum(batch.counts),):
            raise ValueError(f"tokens must be ({sum(batch.counts)},) for counts={batch.counts}, got {tokens.shape}")
        longest = max(past + count for past, count in zip(batch.past, batch.counts, strict=True))
        if longest > self.config.max_positions:
            context = self.config.max_positions
            raise ValueError(f"the model has a context of {context} tokens, got a sequence of {longest}; shorten it")
        if not tokens.is_cuda and not bool(((tokens >= 0) & (tokens < self.config.vocab_size)).all()):
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(f"token numbers must be from 0 to {self.config.vocab_size - 1}, got {low} to {high}")

    def generate(
        self, prompts: str | Sequence[str | Sequence[int]], config: GenerationConfig | None = None, **changes: Any
    ) -> list[str]:
        """The continuation of each prompt. See `bittorch.models.Generation` for arguments and errors."""
        return self.stream(prompts, config, **changes).run().texts

    def stream(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        config: GenerationConfig | None = None,
        *,
        prefix: PrefixCache | None = None,
        **changes: Any,
    ) -> Generation:
        """The same as an iterator over pieces of text, with token numbers, reasons and figures when it has ended.

        ``prefix`` keeps a conversation's keys and values from turn to turn.
        """
        from bittorch.models.generate import Generation, GenerationConfig

        return Generation(self, prompts, (config or GenerationConfig()).changed(**changes), prefix=prefix)

    def save_pretrained(
        self, path: str | Path, *, to: str = "bittorch", allow_lossy: bool = False, overwrite: bool = False
    ) -> Report:
        """Writes the model with its tokenizer: as bittorch's own checkpoint, or in another format.

        Packed layers are written packed, a converted head too, so loading needs no conversion. The path gets its name
        once all of it is written and read back.

        Args:
            path: a directory, or a file for the GGUF formats.
            to: one of `bittorch.models.io.TARGETS`: ``bittorch``, ``bitnet``, ``gguf-tq2_0`` and others.
            allow_lossy: write although the format rounds scales; the report says by how much.
            overwrite: replace what is at ``path``.

        Returns:
            What was written.

        Raises:
            FileExistsError: the path is there, and ``overwrite`` is False.
            bittorch.models.io.LossyError: the format cannot hold the model exactly.
            OSError: a disk that is full, say; nothing is left behind.
        """
        from bittorch.models.save import save_pretrained

        return save_pretrained(self, Path(path), to=to, allow_lossy=allow_lossy, overwrite=overwrite)
