"""A language model: a decoder with its tokenizer, from checkpoints to answers and back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bittorch.models.config import ModelConfig
from bittorch.models.decoder import Decoder
from bittorch.models.embedding import embeddings
from bittorch.models.generate import Generation
from bittorch.models.generation_config import GenerationConfig
from bittorch.models.io import Checkpoint, Report, open_checkpoint
from bittorch.models.io.generation_defaults import generation_defaults, write_defaults
from bittorch.models.kv_cache import PrefixCache
from bittorch.models.load import KV_CACHES, Loader, LoadOptions
from bittorch.models.save import save_model
from bittorch.models.token_numbers import token_numbers

if TYPE_CHECKING:
    from bittorch.models.chat_template import ChatTemplate
    from bittorch.models.tokenizer import Tokenizer


class LanguageModel(Decoder):
    """A decoder for inference, its linear layers packed or dense, with its tokenizer.

    Args:
        config: sizes and rules.
        dtype: of activations, and of keys and values where ``kv_dtype`` is None.
        tokenizer: None where text is not wanted.

    Attributes:
        generation_defaults: what the checkpoint's generation_config.json says, or a GGUF file of sampling. It is
            written by `save_pretrained`, and not used: `bittorch.models.GenerationConfig` says how text is generated.

    Example::

        model = LanguageModel.from_pretrained("checkpoint/")
        print(model.generate("The capital of France is")[0])
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype = torch.float32, *, tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__(config, dtype)
        self.tokenizer = tokenizer
        self.generation_defaults: dict[str, Any] = {}

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
        kv_cache: str = "auto",
        head: str = "auto",
        tokenizer: bool | str | Path = True,
        ternary: str = "auto",
        i2_s_layout: str = "128x32",
        hidden_act: str | None = None,
        override: Mapping[str, Any] | None = None,
        pre_tokenizer: str | None = None,
    ) -> LanguageModel:
        """A model from a directory of safetensors or one GGUF file, straight to its device.

        Ternary tensors stay packed. On a CPU, tensors that need neither conversion nor joining stay in the mapped file,
        which must not change while the model is in use.

        Args:
            path: as `bittorch.models.io.open_checkpoint` takes it.
            device, dtype, depth, group_size, activation_bits, head_depth, fuse_norms, kv_cache, head: as in
                `bittorch.models.load.LoadOptions`.
            tokenizer: whether to load the tokenizer too, which needs the extra ``lm``; or the path of another
                one, as in `open_checkpoint`.
            ternary, i2_s_layout, hidden_act, override, pre_tokenizer: what a file may leave open or get wrong, as in
                `open_checkpoint`.

        Warns:
            bittorch.models.io.CheckpointWarning: the checkpoint leaves something open; the message names it and the
                decision.

        Raises:
            FileNotFoundError, bittorch.models.io.FormatError: as `open_checkpoint`; missing tensors are listed.
            TypeError, ValueError: options out of range.
        """
        options = LoadOptions(device, dtype, depth, group_size, activation_bits, head_depth, fuse_norms, kv_cache, head)
        with open_checkpoint(
            path,
            ternary=ternary,
            i2_s_layout=i2_s_layout,
            hidden_act=hidden_act,
            override=override,
            pre_tokenizer=pre_tokenizer,
            tokenizer=None if isinstance(tokenizer, bool) else tokenizer,
        ) as checkpoint:
            return cls.from_checkpoint(checkpoint, options, tokenizer=tokenizer is not False)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, options: LoadOptions | None = None, *, tokenizer: bool = True
    ) -> LanguageModel:
        """The same from an open checkpoint, which may be closed afterwards."""
        loader = Loader(checkpoint, options or LoadOptions())
        model = cls(loader.config, loader.dtype)
        model.fill(loader)
        model.kv_dtype = KV_CACHES.get(loader.options.kv_cache)
        model.generation_defaults = generation_defaults(checkpoint)
        if tokenizer:
            from bittorch.models.tokenizer import Tokenizer

            model.tokenizer = Tokenizer.from_checkpoint(checkpoint)
        return model

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

        In float32 on a CPU its logits are those of the model in ``eval()``, bit for bit;
        docs/guide/language_models.md has the conditions. It is a copy: further training of the model does not change
        it.

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
        from bittorch.models.from_transformers import checkpoint_of, sampling_of, tokenizer_of

        with checkpoint_of(model, fuse_norms) as checkpoint:
            place = next(model.parameters()).device if device is None else device
            result = cls.from_checkpoint(checkpoint, LoadOptions(place), tokenizer=False)
        result.tokenizer = tokenizer_of(tokenizer, model)
        result.generation_defaults = sampling_of(model)
        return result

    @property
    def chat_template(self) -> ChatTemplate | None:
        """Of the tokenizer; None where the model was not trained on conversations, or has no tokenizer."""
        return None if self.tokenizer is None else self.tokenizer.chat_template

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
        return Generation(self, prompts, (config or GenerationConfig()).changed(**changes), prefix=prefix)

    def embed(
        self, texts: str | Sequence[str | Sequence[int]], *, pooling: str | None = None, batch_size: int = 32
    ) -> Tensor:
        """A vector of length 1 for each text, whose products with others are cosines.

        The last hidden states of a text's tokens, normed, become one vector: their mean, or that of the first (``cls``)
        or the last token. Texts of a batch stand one behind the other without padding, and each sees itself alone.

        Args:
            texts: texts, or lists of token numbers, or one text. Texts get the special tokens that the tokenizer adds,
                such as an end token. An instruction that a model wants before a query is the caller's to write.
            pooling: ``mean``, ``cls`` or ``last``; None for what the checkpoint says.
            batch_size: texts that are computed at once.

        Returns:
            float32 ``(texts, hidden_size)``, on the device of the model.

        Raises:
            TypeError: a text that is neither text nor a list of integers.
            ValueError: no pooling is said or given, an unknown one; a text without tokens, or longer than the context;
                token numbers outside the vocabulary; text where the model has no tokenizer; a batch_size that is not
                positive.
            FloatingPointError: hidden states that are not finite.

        Source:
            Sentence-BERT, arXiv:1908.10084.
        """
        every = [texts] if isinstance(texts, str) else texts
        vocab = self.config.vocab_size
        tokens = (token_numbers(text, self.tokenizer, vocab, f"text {i}") for i, text in enumerate(every))
        return embeddings(self, tokens, pooling or self.config.pooling, batch_size)

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
        with tempfile.TemporaryDirectory() as folder:
            if self.tokenizer is not None:
                self.tokenizer.save(folder)
            write_defaults(self.generation_defaults, self.config, Path(folder))
            return save_model(self, Path(folder), Path(path), to=to, allow_lossy=allow_lossy, overwrite=overwrite)
