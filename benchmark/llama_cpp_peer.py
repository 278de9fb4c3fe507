"""llama.cpp as a peer, through llama-cpp-python: pip install 'bittorch[peers]', which builds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import llama_cpp
import llama_cpp.llama_cpp as library
import numpy as np


class LlamaCpp:
    """A GGUF file in llama.cpp, on CPU threads alone.

    Args:
        path: the file.
        context: tokens that the cache holds.
        threads: for prompts and for single tokens.
        repack: let it copy weights to layouts of its own. The kernels for AMX of version 0.3.36 end the process on some
            files; False leaves them out.
        all_logits: keep the logits of every token, for `logits`.
    """

    def __init__(
        self, path: Path, context: int, threads: int = 1, repack: bool = True, all_logits: bool = False
    ) -> None:
        defaults = library.llama_model_default_params

        def parameters() -> library.llama_model_params:
            found = defaults()
            found.use_extra_bufts = repack
            return found

        sizes = {"n_ctx": context, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads, "n_gpu_layers": 0}
        with mock.patch.object(library, "llama_model_default_params", parameters):
            self.model = llama_cpp.Llama(str(path), verbose=False, logits_all=all_logits, **sizes)

    def encode(self, text: str) -> list[int]:
        return self.model.tokenize(text.encode(), add_bos=self.model._model.add_bos_token(), special=False)

    def step(self, tokens: Sequence[int], behind: int = 0) -> None:
        """Runs the tokens behind the first ``behind`` ones, which the cache has from calls before."""
        self.model.n_tokens = behind
        self.model.eval(tokens)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """``(tokens, vocabulary)`` in float32, of a sequence of its own; needs ``all_logits``."""
        self.step(tokens)
        return np.array(self.model.scores[: len(tokens)])

    def last(self) -> np.ndarray:
        """The logits of the last token."""
        return np.ctypeslib.as_array(self.model._ctx.get_logits_ith(-1), (self.model.n_vocab(),))

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The ``count`` likeliest tokens behind these, one by one."""
        self.step(tokens)
        found = [int(self.last().argmax())]
        while len(found) < count:
            self.step(found[-1:], len(tokens) + len(found) - 1)
            found.append(int(self.last().argmax()))
        return found
