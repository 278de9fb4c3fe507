"""The sizes and rules of a decoder-only language model, whatever file they came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bittorch.models.hadamard import Hadamard

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # canonical names
ACTIVATIONS = ("silu", "relu2", "gelu_tanh")
# The matrices of a layer that may have a bias, each on its own.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
POOLINGS = ("mean", "cls", "last")
WINDOW_TYPES = ("sliding_attention", "full_attention")
LAYER_TYPES = (*WINDOW_TYPES, "linear_attention")
ROPE_ENTRIES = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
ROPE_OPTIONS = {
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor"),
}
ROPE_LISTS = ("factors", "short_factor", "long_factor")


def _is_positive(value: Any, below: float = 2.0**127) -> bool:
    """Whether it is a number that float32 holds."""
    return type(value) in (int, float) and 0 < value < below


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and rules of a decoder; its architecture says what they are the sizes of.

    Args:
        architecture: a name of `bittorch.models.architectures`, which builds the layers.
        vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim: sizes.
        max_positions: the longest sequence the model was trained for.
        rms_norm_eps: added to the mean square of every norm.
        rope_theta: base of the rotary frequencies ``theta ** (-2 i / head_dim)``.
        rope_scaling: None, or how the frequencies are changed, under ``rope_type``: ``linear`` with ``factor``;
            ``llama3`` with ``factor``, ``low_freq_factor``, ``high_freq_factor``,
            ``original_max_position_embeddings``; ``yarn`` with ``factor``, ``original_max_position_embeddings``,
            and where wanted ``truncate`` and other ``ROPE_OPTIONS``; ``factors`` with ``factors``, head_dim / 2 floats
            by which the frequencies are divided (a GGUF file keeps only these of ``llama3``); ``longrope`` with two
            such lists, ``short_factor`` and ``long_factor``, and ``original_max_position_embeddings``, which chooses
            one of them.
        hidden_act: ``silu``; ``relu2``, the square of ReLU; ``gelu_tanh``, GELU by its formula with tanh.
        tie_embeddings: the head is the embedding.
        biases: names of ``PROJECTIONS``, those that have a bias; kept in that order.
        activation_bits: 8 for W1.58A8 checkpoints, None where activations stay floating.
        fuse_norms: where activations are quantised, the norm before a packed layer is part of its quantiser. That is
            faster and rounds once less. False computes the norms as transformers does.
        bos_token_id, eos_token_ids: as the checkpoint says.
        num_experts: MLPs of which a token goes through some, in layers that have experts; 0 for none.
        experts_per_token: through how many of them a token goes.
        expert_size: intermediate size of an expert.
        shared_expert_size: intermediate size of an expert that every token goes through too; 0 for none.
        normalise_experts: the weights of a token's experts are divided by their sum.
        dense_layers: layers that have one MLP instead of experts; kept in order, once each.
        expert_step: of the others, every so many-th has experts; 1 for all.
        expert_limit: gates of experts are cut above it before SiLU, the other factor to this magnitude; 0 for no limit.
        window: a token of a layer with a window sees itself and so many before it.
        layer_types: of each layer ``sliding_attention``, with the window, ``full_attention``, or ``linear_attention``,
            a DeltaNet; empty for full attention in all.
        delta_key_heads, delta_value_heads, delta_key_dim, delta_value_dim: heads of DeltaNet layers and their
            channels; queries are as keys, and a key head serves as many value heads as divide it.
        delta_kernel: tokens that the convolution of such a layer sees, the current one included.
        local_rope_theta: rope_theta of layers with a window, which scale no positions; 0 for that of all.
        query_size: attention scores are divided by its square root; 0 for head_dim.
        rotary_dim: channels of a head that are rotated, the first of it; 0 for all.
        norms_from_one: the weights of norms are stored less 1.
        input_norm_eps: each matrix of attention and MLP has a norm of its input, with this eps; 0 for none.
        pooling: how a text becomes one vector, as of `bittorch.models.LanguageModel.embed`; empty for nothing said.
        hadamard: which weights stand in a rotated basis; None for none.
        embedding_scale: embeddings are multiplied by it.
        residual_scale: what attention and MLP of a layer add is multiplied by it.
        logit_scale: what the head multiplies is divided by it.

    Raises:
        ValueError: a size that no model has, or heads that do not divide.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    architecture: str = "llama"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    hidden_act: str = "silu"
    tie_embeddings: bool = False
    biases: tuple[str, ...] = ()
    activation_bits: int | None = None
    fuse_norms: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    shared_expert_size: int = 0
    normalise_experts: bool = True
    dense_layers: tuple[int, ...] = ()
    expert_step: int = 1
    expert_limit: float = 0.0
    window: int = 0
    layer_types: tuple[str, ...] = ()
    local_rope_theta: float = 0.0
    query_size: int = 0
    delta_key_heads: int = 0
    delta_value_heads: int = 0
    delta_key_dim: int = 0
    delta_value_dim: int = 0
    delta_kernel: int = 0
    rotary_dim: int = 0
    norms_from_one: bool = False
    input_norm_eps: float = 0.0
    pooling: str = ""
    hadamard: Hadamard | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        sizes = "vocab_size hidden_size intermediate_size num_layers num_heads num_kv_heads head_dim max_positions"
        for name in sizes.split():
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < 2**31:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}")
        if not isinstance(self.pooling, str) or self.pooling not in ("", *POOLINGS):
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, or empty, got {self.pooling!r:.40}")
        if self.activation_bits not in (None, 8, 16, 24) or isinstance(self.activation_bits, float):
            raise ValueError(f"activation_bits must be None, 8, 16 or 24, got {self.activation_bits!r}")
        if not _is_positive(self.rms_norm_eps, below=1):
            raise ValueError(f"rms_norm_eps must be above 0 and below 1, got {self.rms_norm_eps!r:.100}")
        if self.input_norm_eps != 0 and not _is_positive(self.input_norm_eps, below=1):
            raise ValueError(f"input_norm_eps must be 0, or above 0 and below 1, got {self.input_norm_eps!r:.100}")
        if not _is_positive(self.rope_theta):
            raise ValueError(f"rope_theta must be positive and finite, got {self.rope_theta!r:.100}")
        for name in ("embedding_scale", "residual_scale", "logit_scale"):
            if not _is_positive(value := getattr(self, name)):
                raise ValueError(f"{name} must be positive and finite, got {value!r:.100}")
        for name in ("fuse_norms", "norms_from_one"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r:.100}")
        for token in (self.bos_token_id, *self.eos_token_ids):
            if token is not None and (type(token) is not int or token < 0):
                raise ValueError(f"bos_token_id and eos_token_ids must be numbers of tokens, got {token!r}")
        if not isinstance(self.biases, tuple) or not set(self.biases) <= set(PROJECTIONS):
            raise ValueError(f"biases must be a tuple of {', '.join(PROJECTIONS)}, got {self.biases!r:.200}")
        object.__setattr__(self, "biases", tuple(name for name in PROJECTIONS if name in self.biases))
        self._check_experts()
        self._check_layers()
        if not isinstance(self.hadamard, Hadamard | None):
            raise ValueError(f"hadamard must be a Hadamard or None, got {type(self.hadamard).__name__}")
        if self.hadamard and self.tie_embeddings and self.hadamard.embedding != (HEAD in self.hadamard.weights):
            raise ValueError(
                f"hadamard has embedding={self.hadamard.embedding}, and {HEAD}, which is the embedding, is "
                f"{'one' if HEAD in self.hadamard.weights else 'none'} of its weights: they must agree"
            )
        if self.rope_scaling is not None:
            self._check_rope_scaling(self.rope_scaling)

    def _check_experts(self) -> None:
        for name in ("num_experts", "experts_per_token", "expert_size", "expert_step", "shared_expert_size"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**31:
                raise ValueError(f"{name} must be an integer that is not negative, got {value!r:.100}")
        if self.num_experts and not 0 < self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token must be from 1 to num_experts={self.num_experts}, got {self.experts_per_token}"
            )
        for name in ("expert_size", "expert_step"):
            if self.num_experts and not getattr(self, name):
                raise ValueError(f"{name} must be positive for num_experts={self.num_experts}, got 0")
        if type(self.normalise_experts) is not bool:
            raise ValueError(f"normalise_experts must be True or False, got {self.normalise_experts!r:.100}")
        layers = self.dense_layers
        if not isinstance(layers, list | tuple) or any(type(layer) is not int for layer in layers):
            raise ValueError(f"dense_layers must be numbers of layers, got {layers!r:.100}")
        object.__setattr__(self, "dense_layers", tuple(sorted(set(layers))))

    def _check_layers(self) -> None:
        if type(self.window) is not int or not 0 <= self.window < 2**31:
            raise ValueError(f"window must be an integer that is not negative, got {self.window!r:.100}")
        if not isinstance(self.layer_types, list | tuple) or not set(map(str, self.layer_types)) <= set(LAYER_TYPES):
            raise ValueError(f"layer_types must be of {', '.join(LAYER_TYPES)}, got {self.layer_types!r:.200}")
        object.__setattr__(self, "layer_types", tuple(self.layer_types))
        if self.layer_types and len(self.layer_types) != self.num_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} values for {self.num_layers} layers")
        if LAYER_TYPES[0] in self.layer_types and not self.window:
            raise ValueError("window must be positive for layers of sliding_attention, got 0")
        if self.window and not self.layer_types:
            raise ValueError(f"layer_types must name the layers of window={self.window}, got none")
        self._check_delta()
        if type(self.rotary_dim) is not int or self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"rotary_dim must be even, from 0 to head_dim={self.head_dim}, got {self.rotary_dim!r:.40}"
            )
        for name in ("expert_limit", "local_rope_theta"):
            if (value := getattr(self, name)) != 0 and not _is_positive(value):
                raise ValueError(f"{name} must be 0 or positive and finite, got {value!r:.40}")
        if type(self.query_size) is not int or not 0 <= self.query_size < 2**31:
            raise ValueError(f"query_size must be an integer that is not negative, got {self.query_size!r:.40}")
        if self.query_size == self.head_dim:
            object.__setattr__(self, "query_size", 0)

    def _check_delta(self) -> None:
        least = int(LAYER_TYPES[2] in self.layer_types)
        for name in ("delta_key_heads", "delta_value_heads", "delta_key_dim", "delta_value_dim", "delta_kernel"):
            value = getattr(self, name)
            wanted = 2 * least if name == "delta_kernel" else least
            if type(value) is not int or not wanted <= value < 2**31:
                raise ValueError(f"{name} must be an integer from {wanted} on, got {value!r:.100}")
        if least and self.delta_value_heads % self.delta_key_heads:
            raise ValueError(
                f"delta_value_heads={self.delta_value_heads} is no multiple of delta_key_heads={self.delta_key_heads}"
            )

    def _check_rope_scaling(self, scaling: Mapping[str, Any]) -> None:
        kind = scaling.get("rope_type")
        if not isinstance(kind, str) or kind not in ROPE_ENTRIES:
            raise ValueError(f"rope_type {kind!r:.100} is not known; known are {', '.join(ROPE_ENTRIES)}")
        for name in ROPE_ENTRIES[kind]:
            values = scaling.get(name)
            if name in ROPE_LISTS:
                count = len(values) if isinstance(values, list | tuple) else 0
                if count != self.rotated // 2:
                    raise ValueError(f"rope_scaling {name} must be {self.rotated // 2} numbers, got shape ({count},)")
                if not all(_is_positive(value) for value in values or ()):
                    raise ValueError(f"rope_scaling {name} must be positive and finite, got {values!r:.100}")
            elif not _is_positive(values):
                raise ValueError(f"rope_scaling of {kind} must have a positive {name}, got {values!r:.100}")
        for name in ROPE_OPTIONS.get(kind, ()):
            if not _is_positive(scaling.get(name, 1)):
                raise ValueError(f"rope_scaling of {kind} must have a positive {name}, got {scaling[name]!r:.100}")
        if kind == "longrope" and (original := scaling["original_max_position_embeddings"]) <= 1:
            raise ValueError(f"rope_scaling original_max_position_embeddings must be above 1, got {original!r:.40}")
        if kind == "yarn" and type(scaling.get("truncate", True)) is not bool:
            raise ValueError(f"rope_scaling of yarn must have truncate true or false, got {scaling['truncate']!r:.100}")
        if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            raise ValueError("rope_scaling of llama3 must have low_freq_factor below high_freq_factor")

    @property
    def rotated(self) -> int:
        """Channels of a head that are rotated."""
        return self.rotary_dim or self.head_dim

    def window_of(self, layer: int) -> int:
        """How many tokens before itself a token of layer number ``layer`` sees; 0 for all."""
        return self.window if self.layer_types and self.layer_types[layer] == LAYER_TYPES[0] else 0

    def is_delta(self, layer: int) -> bool:
        """Whether layer number ``layer`` is a DeltaNet."""
        return bool(self.layer_types) and self.layer_types[layer] == LAYER_TYPES[2]

    def cache_layer(self, layer: int) -> int:
        """The number of a layer among those of its kind, attention or DeltaNet."""
        return sum(self.is_delta(own) == self.is_delta(layer) for own in range(layer))

    @property
    def delta_layers(self) -> int:
        """How many layers are a DeltaNet."""
        return self.layer_types.count(LAYER_TYPES[2])

    @property
    def delta_channels(self) -> int:
        """Of queries, keys and values of a DeltaNet layer together."""
        return 2 * self.delta_key_heads * self.delta_key_dim + self.delta_value_heads * self.delta_value_dim

    def has_bias(self, projection: str) -> bool:
        """Whether a matrix of every layer, a name of ``PROJECTIONS``, has a bias."""
        return projection in self.biases

    def has_experts(self, layer: int) -> bool:
        """Whether layer number ``layer``, from 0, has experts instead of one MLP."""
        return self.num_experts > 0 and layer not in self.dense_layers and (layer + 1) % self.expert_step == 0
