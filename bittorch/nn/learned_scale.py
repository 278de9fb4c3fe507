"""The scale that some methods learn: where its first value comes from, and until when it follows the weights.

It starts where a good fixed rule has its own scale, so it belongs to the weights that the layer had then. Models
are often initialised after their layers are made, by `torch.nn.init`, by transformers, by a dense checkpoint. The scale
therefore follows the weights until somebody trains it or loads another one:

=========  ====================================================================================
state      meaning
=========  ====================================================================================
``meta``   made on the meta device: no values yet
``empty``  made on the meta device, with memory since (`torch.nn.Module.to_empty`): 1 until it is computed
``fresh``  computed from the weights, and computed again before it is used
``kept``   trained or loaded: never computed again, except by `LearnedScale.reset_scale`
=========  ====================================================================================

The state is an attribute of the layer, not of its state dict: a checkpoint that has a scale makes it ``kept``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.nn.parts import narrowed
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig, learned
from bittorch.quant.base import straight_through_once

State = Literal["meta", "empty", "fresh", "kept"]


class LearnedScale(nn.Module):
    """A layer with ``weight_scale``: a parameter where the method learns it, else None."""

    config: TernaryQuantConfig
    weight: Tensor
    weight_scale: nn.Parameter | None
    _scale_state: State = "kept"  # of the class, for layers that were pickled without one
    # What `reset_scale` wrote, and into which parameter: a scale that somebody has changed or replaced is kept.
    _fresh: tuple[Tensor, nn.Parameter] | None = None
    _initialized_by_transformers: bool = False

    def _make_scale(self) -> None:
        self.register_parameter("weight_scale", None)
        if self.config.learned:
            scale = torch.empty(self._scale_shape(self.weight), dtype=torch.float32, device=self.weight.device)
            self.weight_scale = nn.Parameter(scale, self.weight.requires_grad)
            self._scale_state = "meta" if scale.is_meta else "empty"
            self.reset_scale()

    def _filters(self, weight: Tensor) -> Tensor:
        """The weight as the quantiser takes it: an output, a filter or an entry of a table a row."""
        return weight

    def _from_filters(self, filters: Tensor) -> Tensor:
        """The inverse of `_filters`."""
        return filters

    def _scale_shape(self, weight: Tensor) -> tuple[int, ...]:
        filters = self._filters(weight)
        rows, columns = len(filters), filters.shape[1:].numel()
        shape = reference.scale_shape(rows, columns, *self.config.grouping)
        return shape if self.config.packs else (2, *shape)

    @torch.no_grad()
    def reset_scale(self) -> None:
        """Sets the learned scale where a good fixed rule has its own; nothing for methods without one.

        Layers do it by themselves when they are made, and in the first training forward pass unless a checkpoint
        brought a scale. Call it after giving a trained layer other weights, or a sharded one.
        """
        if self.weight_scale is None or self.weight.is_meta:
            return
        if self.weight_scale.is_meta:
            scale = torch.empty(self._scale_shape(self.weight), dtype=torch.float32, device=self.weight.device)
            self.weight_scale = nn.Parameter(scale, self.weight_scale.requires_grad)
        value = self._rule(gathered(self.weight))
        fill(self.weight_scale, value)
        self._scale_state, self._fresh = "fresh", (value, self.weight_scale)

    def _rule(self, weight: Tensor) -> Tensor:
        """The scale of twn, which is near the best one of bell-shaped weights, as the step of the method."""
        rule = ("twn", "ls", 0.75, *self.config.grouping)
        _, scale = ops.ternary_quantize(narrowed(self._filters(weight.detach()).flatten(1)), *rule)
        step = learned.initial_step(self.config.method, scale) if self.config.packs else scale
        return step.expand(self._scale_shape(weight)).clone()

    def _step(self) -> Tensor:
        """The scale to use now: the parameter, or outside training what it would be before it was trained."""
        scale = self.weight_scale
        assert scale is not None
        if self._scale_state == "kept":
            return scale
        if not self._scale_follows:
            self._keep()  # another parameter: of a loader that sets parameters itself, or of fully_shard
            return scale
        if not self.training:
            value = self._present(gathered(self.weight), gathered(scale))
            return straight_through_once(scale, value) if not scale.is_meta else value
        self._settle()
        settled = self.weight_scale
        assert settled is not None
        return settled

    @torch.no_grad()
    def _stored_step(self) -> Tensor:
        """The whole of the scale, detached: what a forward pass would use now."""
        assert self.weight_scale is not None
        scale = gathered(self.weight_scale).detach()
        return self._present(gathered(self.weight), scale) if self._scale_follows else scale

    @property
    def _scale_follows(self) -> bool:
        """Whether the parameter is one that the layer made, and nobody trained or loaded it."""
        scale, state = self.weight_scale, self._scale_state
        if scale is None or state == "kept" or (state == "meta" and not scale.is_meta):
            return False
        return self._fresh is None or self._fresh[1] is scale

    def _keep(self) -> None:
        self._scale_state, self._fresh = "kept", None

    @torch.no_grad()
    def _settle(self) -> None:
        """The last time that the scale follows the weights: from now on it is trained."""
        assert self.weight_scale is not None
        if self.weight_scale.is_meta:
            self.reset_scale()
        else:  # without a branch on values, which would wait for the device and break a compiled graph
            self.weight_scale.copy_(self._present(self.weight, self.weight_scale))
        self._keep()

    @torch.no_grad()
    def _present(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The scale of the weights as they are; that of the parameter where somebody has set it."""
        value = self._rule(weight)
        if self._fresh is None:
            return value
        return torch.where(_same(scale, self._fresh[0].to(scale)), value.to(scale.dtype), scale)

    def refresh_scale(self) -> None:
        """Computes a scale that follows the weights again, for those who read the parameter itself: a state dict,
        fully_shard, and DistributedDataParallel, which copies parameters and no states from the first process."""
        scale, fresh = self._parameters.get("weight_scale"), self._fresh
        if scale is None or self._scale_state not in ("fresh", "empty") or (fresh and fresh[1] is not scale):
            return
        weight = self.weight
        readable = not (scale.is_meta or weight.is_meta or hasattr(weight, "full_tensor"))
        readable = readable and weight.dim() > 1  # FSDP1 leaves each process a flat part
        writable = torch.is_inference_mode_enabled() or not scale.is_inference()
        if readable and writable and (fresh is None or bool(_same(scale.detach(), fresh[0].to(scale)))):
            self.reset_scale()

    def apply(self, fn: Callable[[nn.Module], None]) -> LearnedScale:
        super().apply(fn)  # the usual way to initialise a model
        self.refresh_scale()
        return self

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        if not recurse:  # so those ask that shard module by module; torch.func and torch.fx, which recurse, trace
            self.refresh_scale()
        return super().named_parameters(prefix, recurse, remove_duplicate)

    def _save_to_state_dict(self, *args: Any) -> None:
        self.refresh_scale()
        super()._save_to_state_dict(*args)

    @property
    def _is_hf_initialized(self) -> bool:
        """transformers sets this on each module of a model that it has made or loaded.

        It marks the parameters that it loaded; those that the files lack, it leaves to the module.
        """
        return self._initialized_by_transformers

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        self._initialized_by_transformers = value
        if not value or self._parameters.get("weight_scale") is None:
            return
        if getattr(self.weight_scale, "_is_hf_initialized", False):
            self._keep()
        elif self._scale_state != "kept":
            self.reset_scale()

    def _apply(self, fn: Any, recurse: bool = True) -> LearnedScale:
        before = self._parameters.get("weight_scale")
        super()._apply(fn, recurse)
        if before is not None and before.is_meta and self.weight_scale is not None and not self.weight_scale.is_meta:
            self._scale_state, self._fresh = "empty", None
            with torch.no_grad():
                self.weight_scale.fill_(1.0)  # whoever reads it before the weights are known reads a value
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if prefix + "weight_scale" in state_dict:
            if self.weight_scale is not None and not self.weight_scale.is_meta:
                self._keep()
        elif prefix + "weight" in state_dict:
            self.reset_scale()  # a dense checkpoint: the scale of the weights before it does not fit

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        if self._parameters.get("weight_scale") is not None:  # not yet there when torch's __init__ calls this
            self.reset_scale()


def _same(scale: Tensor, value: Tensor) -> Tensor:
    """Whether all values are equal, NaN to NaN; a tensor, since a branch on it would wait for the device."""
    return ((scale == value) | (scale.isnan() & value.isnan())).all()


def gathered(weight: Tensor) -> Tensor:
    """The whole of a weight that is sharded over processes (FSDP2), any other weight itself."""
    full_tensor = getattr(weight, "full_tensor", None)
    return full_tensor() if full_tensor else weight


def fill(parameter: Tensor, value: Tensor) -> None:
    """Copies a whole value into a parameter, or into each process's share of one that is sharded."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        value = distribute_tensor(value.contiguous(), parameter.device_mesh, parameter.placements)
    parameter.copy_(value)
