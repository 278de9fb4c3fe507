"""What a file of an architecture says: its names in other formats, its defaults, and what its layers are made of.

Each mapping is one rule for reading and for writing: an `Entry` names a field in both formats, `GGUF_LAYER` the tensors
of a layer, `rope_rows` the order of rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bittorch.models.config import LAYER_TYPES, ModelConfig
from bittorch.models.rules import Block

REQUIRED: Any = object()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A field of `ModelConfig` as config.json and GGUF files have it.

    Args:
        field: of `ModelConfig`.
        hf: the key in config.json.
        gguf: the key in a GGUF file, without the architecture before it; None where GGUF has none.
        default: where a file says nothing, or null in config.json; without one the key must be there. None is for
            `Architecture.of_hf` and `Architecture.of_gguf` to fill in.
        implied: what a GGUF file means without a key; None for the default of `ModelConfig`.
    """

    field: str
    hf: str
    gguf: str | None
    default: Any = REQUIRED
    implied: Any = None

    @property
    def meant(self) -> Any:
        """What a GGUF file means that has no key."""
        return getattr(ModelConfig, self.field) if self.implied is None else self.implied


# Of every architecture.
ENTRIES = (
    Entry("hidden_size", "hidden_size", "embedding_length"),
    Entry("intermediate_size", "intermediate_size", "feed_forward_length"),
    Entry("num_layers", "num_hidden_layers", "block_count"),
    Entry("num_heads", "num_attention_heads", "attention.head_count"),
    Entry("max_positions", "max_position_embeddings", "context_length"),
)
# Of the architectures with experts.
EXPERT_ENTRIES = (
    Entry("num_experts", "num_experts", "expert_count"),
    Entry("experts_per_token", "num_experts_per_tok", "expert_used_count"),
    Entry("expert_size", "moe_intermediate_size", "expert_feed_forward_length"),
)
GGUF_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    # Norms of what a matrix multiplies, as bitnet.cpp names them.
    "attn_q_norm_in": "self_attn.q_proj.norm",
    "attn_k_norm_in": "self_attn.k_proj.norm",
    "attn_v_norm_in": "self_attn.v_proj.norm",
    "attn_output_norm_in": "self_attn.o_proj.norm",
    "ffn_gate_norm_in": "mlp.gate_proj.norm",
    "ffn_up_norm_in": "mlp.up_proj.norm",
    "ffn_down_norm_in": "mlp.down_proj.norm",
    # A tensor of three dimensions, whose first is the expert's number: see `bittorch.models.io.stacks`.
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
MOST_LAYERS = 10**5  # a file that says more is refused for lack of tensors, before something is made for each layer
INPUT_NORM = "model.layers.0.self_attn.q_proj.norm.weight"
SUB_NORM = "model.layers.0.self_attn.attn_sub_norm.weight"


class Form(NamedTuple):
    """How a GGUF file has a tensor that transformers has in another way.

    Args:
        rows: row i of the file is row ``rows[i]``; None for the same order.
        columns: the same of columns.
        added: to each value of the file.
        decay: the file has ``-exp`` of each value.
        squeezed: the file has two dimensions of three, without the middle one, which is 1; always float32.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    added: float = 0.0
    decay: bool = False
    squeezed: bool = False

    @property
    def plain(self) -> bool:
        """Whether there is no difference."""
        return self.rows is None and self.columns is None and not (self.added or self.decay or self.squeezed)

    @property
    def rounds(self) -> bool:
        """Whether values are computed, and the last bits may change."""
        return bool(self.added or self.decay)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of the file of this shape can have this form."""
        rows = self.rows is None or len(self.rows) == shape[0]
        columns = self.columns is None or shape[1:] == (len(self.columns),)
        return rows and columns and (len(shape) == 2 or not self.squeezed)

    def to_file(self, values: Tensor) -> Tensor:
        """Values as the file has them."""
        values = values.flatten(1) if self.squeezed else values
        values = values if self.rows is None else values[self.rows]
        values = values if self.columns is None else values[:, self.columns]
        values = -values.exp() if self.decay else values
        return values + self.added if self.added else values

    def of_file(self, values: Tensor) -> Tensor:
        """The inverse."""
        values = values - self.added if self.added else values
        values = (-values).log() if self.decay else values
        values = values if self.columns is None else values[:, self.columns.argsort()]
        values = values if self.rows is None else values[self.rows.argsort()]
        return values.unsqueeze(1) if self.squeezed else values


class Architecture:
    """One architecture; a subclass in a file of its own has other values and methods.

    Attributes:
        name: in the register, and of the file.
        hf_types: model types of config.json; the first is written.
        hf_class: of transformers, that is written.
        hf_defaults: what transformers takes where config.json says nothing, by its keys.
        hf_neutral: entries of config.json that change what the model computes, but not with these values; others are
            refused.
        hf_second_names: other names of entries of config.json, by their first names, which are written.
        gguf: names in GGUF files; the first is written. Each with the activation that it implies, None where an entry
            must say it.
        gguf_layer: names of a layer's tensors in GGUF files, and canonical ones.
        gguf_permuted: whether GGUF files keep the rows of q and k in the order of `rope_rows`.
        norms_from_one: whether config.json's models add 1 to the weights of norms; GGUF files have the sum.
        partial_rotation: whether files may rotate a part of each head.
        activation_bits: what models of this kind are trained with.
        entries: fields of `ModelConfig` that this architecture has beyond `ENTRIES`.
        gguf_defaults: what is taken where a GGUF file lacks an entry that others must have, by its key.
        gguf_read: entries of GGUF files beyond these, which `of_gguf` reads or which change nothing.
        hf_skipped: how names of tensors begin that no part of the model uses; they are left out, with a warning.
    """

    name: ClassVar[str]
    hf_types: ClassVar[tuple[str, ...]]
    hf_class: ClassVar[str]
    hf_defaults: ClassVar[Mapping[str, Any]] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu"}
    hf_neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    hf_second_names: ClassVar[Mapping[str, str]] = {}
    gguf: ClassVar[Mapping[str, str | None]]
    gguf_layer: ClassVar[Mapping[str, str]] = GGUF_LAYER
    gguf_permuted: ClassVar[bool] = False
    norms_from_one: ClassVar[bool] = False
    partial_rotation: ClassVar[bool] = False
    activation_bits: ClassVar[int | None] = None
    entries: ClassVar[tuple[Entry, ...]] = ()
    gguf_defaults: ClassVar[Mapping[str, Any]] = {}
    gguf_read: ClassVar[tuple[str, ...]] = ()
    hf_skipped: ClassVar[tuple[str, ...]] = ()

    def layer(self, config: ModelConfig, index: int) -> Block:
        """The recipe of layer ``index``: a block that takes ``(x, rotation, batch)``, without weights."""
        raise NotImplementedError

    def embedding_scale(self, config: ModelConfig, dtype: torch.dtype) -> float:
        """What embeddings are multiplied by in a model that runs in ``dtype``."""
        return config.embedding_scale

    def of_tensors(self, names: Container[str]) -> str:
        """The name in the register of a model with these tensors; some say more than their file's name does."""
        return self.name

    def hf_values(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The entries of config.json, what only this architecture has as others have it. Raises ValueError."""
        return values

    def of_hf(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields of `ModelConfig`, of what config.json has for `ENTRIES` and `entries`. Raises ValueError."""
        return fields

    def to_hf(self, values: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
        """The inverse, of entries of config.json."""
        return values

    def of_gguf(self, fields: dict[str, Any], get: Callable[[str, Any], Any]) -> dict[str, Any]:
        """The same of a GGUF file, whose other entries ``get`` gives, or a default.

        What has no default is None, and gets what llama.cpp takes for it in older files. Raises ValueError.
        """
        return fields

    def to_gguf(self, entries: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
        """The inverse, of entries without the name of the architecture."""
        return entries

    def hf_biases(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Which projections have a bias in transformers, by the entries of config.json."""
        attention = ("q_proj", "k_proj", "v_proj", "o_proj") if values.get("attention_bias") else ()
        return attention + (("gate_proj", "up_proj", "down_proj") if values.get("mlp_bias") else ())

    def gguf_form(self, config: ModelConfig, name: str) -> Form:
        """What a GGUF file has for a tensor, by its canonical name."""
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
        rows = rope_rows(heads, config.head_dim) if self.gguf_permuted and heads else None
        summed = self.norms_from_one and name.endswith("norm.weight") and "_proj.norm" not in name
        return Form(rows, added=float(summed))

    def gguf_name(self, config: ModelConfig, type_name: str) -> str:
        """The name that a GGUF file with ternary tensors of this type is written under."""
        return next(iter(self.gguf))


def read_entries(
    architecture: Architecture, key: str, value_of: Callable[[str, Any], Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of `ModelConfig` from a file: those of `ENTRIES`, and the architecture's own.

    Args:
        architecture: whose file it is.
        key: ``hf`` or ``gguf``.
        value_of: gives the value for a key, or the default; `REQUIRED` stands for none, and must raise.
        given: fields whose values are known, which a file may lack.
    """
    found: dict[str, Any] = {}
    for entry in ENTRIES + architecture.entries:
        default, name = given.get(entry.field, entry.default), getattr(entry, key)
        value = entry.meant if name is None else value_of(name, default)
        found[entry.field] = default if value is None and default is not REQUIRED else value
    return found


def written_entries(architecture: Architecture, key: str, config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_entries`."""
    named = ((entry, getattr(entry, key)) for entry in ENTRIES + architecture.entries)
    return {name: getattr(config, entry.field) for entry, name in named if name is not None}


def keys_of(architecture: Architecture, key: str) -> dict[str, str]:
    """The keys, ``hf`` or ``gguf``, of fields of `ModelConfig` that have one of another name."""
    named = ((entry.field, getattr(entry, key)) for entry in ENTRIES + architecture.entries)
    return {field: name for field, name in named if name not in (None, field)}


def with_keys(text: str, keys: Mapping[str, str], given: Container[str]) -> str:
    """A message about fields of `ModelConfig`, with what a file calls them, unless they were given beside it."""
    fields = [field for field in dict.fromkeys(re.findall(r"\w+", text)) if field in keys and field not in given]
    named = ", ".join(f"{field} is {keys[field]}" for field in fields)
    return f"{text} ({named} in the file)" if named else text


def has_sizes(fields: Mapping[str, Any]) -> bool:
    """Whether what `read_entries` found of `ENTRIES` can be computed with; the rest `ModelConfig` refuses by name."""
    return all(type(fields[entry.field]) is int and 0 < fields[entry.field] < 2**31 for entry in ENTRIES)


def counted_windows(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``window`` and ``layer_types`` of files that count the token itself to the window.

    Args:
        fields: of `read_entries`; a number in the place of layer_types is a period, whose last layer has no window.

    Raises:
        ValueError: another type.
    """
    window, kinds = 0 if fields["window"] is None else fields["window"], fields["layer_types"]
    if type(window) is not int or window < 0:
        raise ValueError(f"sliding_window must be an integer that is not negative, got {window!r:.40}")
    if not isinstance(kinds, list | tuple) and (type(kinds) is not int or kinds < 1):
        raise ValueError(f"layer_types must be a list, or a positive period, got {kinds!r:.40}")
    layers = fields["num_layers"]
    if not window or not has_sizes(fields) or layers > MOST_LAYERS:
        return {"window": 0, "layer_types": ()}
    if type(kinds) is int:
        kinds = [LAYER_TYPES[(layer + 1) % kinds == 0] for layer in range(layers)]
    return {"window": window - 1, "layer_types": kinds}


def rope_rows(heads: int, head_dim: int) -> Tensor:
    """``order``: row i of a file whose rotation turns neighbours is row ``order[i]`` of one that turns halves.

    Row j * head_dim / 2 + i of a head goes to 2 i + j. ``order.argsort()`` is the way back.
    """
    rows = torch.arange(heads * head_dim)
    return rows.view(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)
