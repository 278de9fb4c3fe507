"""A part of a decoder's layers, as torch's pipelines take it."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from bittorch.models.batch import Batch
from bittorch.models.decoder import Decoder


class DecoderStage(nn.Module):
    """Layers of a decoder as one stage of several, for `torch.distributed.pipelining.PipelineStage`.

    Stage ``index`` of ``count`` has layers ``[index * n // count, (index + 1) * n // count)`` of n; the first stage has
    the embedding too, the last one the head. A pipeline of all stages gives the logits of the model bit for bit where
    no product depends on the batch. It reads whole sequences of one length, without a cache: scores, not generation.

    Args:
        model: which stays as it is, and shares its layers; drop it to free the others.
        index, count: of the stage.

    Shape:
        ``(rows, tokens)`` of int64 for the first stage, else ``(rows, tokens, hidden_size)``, to the same, or
        ``(rows, tokens, vocab_size)`` from the last one.

    Raises:
        TypeError: another model.
        ValueError: a stage that there is not, or more stages than layers.
    """

    def __init__(self, model: Decoder, index: int, count: int) -> None:
        super().__init__()
        if not isinstance(model, Decoder):
            raise TypeError(f"a DecoderStage is of a LanguageModel, got {type(model).__name__}; cut others by hand")
        layers = len(model.layers)
        if not 0 <= index < count <= layers:
            raise ValueError(f"there is no stage {index} of {count} for {layers} layers; a stage has at least one")
        own = copy.copy(model)
        own._modules = dict(model._modules)  # the copy shares it otherwise
        own.layers = model.layers[index * layers // count : (index + 1) * layers // count]
        self.first, self.last = index == 0, index == count - 1
        if not self.first:
            own._modules["embed_tokens"] = None
        if not self.last:
            own._modules["lm_head"] = None
        self.part = own

    def forward(self, x: Tensor) -> Tensor:
        rows, count = x.shape[:2]
        batch = Batch.of([count] * rows, None, None)
        flat = self.part.embedded(x.flatten()) if self.first else x.flatten(0, 1)
        rotation = self.part.rotation(batch)
        for layer in self.part.layers:
            flat = layer(flat, rotation, batch)
        return (self.part.logits(flat) if self.last else flat).unflatten(0, (rows, count))
