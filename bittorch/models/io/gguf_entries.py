"""Every entry of a GGUF file is read, known to change nothing, or refused: a file means what its entries say.

An entry that no table here has may change what the model computes, as those of forks do. Sources: the keys of
llama.cpp, and what its architectures ``llama`` and ``bitnet`` do with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bittorch.models.io import choices
from bittorch.models.io.gguf_hadamard import KEYS as HADAMARD_KEYS

# Of the architecture, without its name: what `config_from_gguf` reads.
READ = frozenset(
    {
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "hidden_activation",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "pooling_type",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_log_multiplier",
        "rope.scale_linear",
    }
)
# Nothing of what is computed depends on them: the tensors decide, or they belong to what other values rule out.
HARMLESS = frozenset(
    {
        "vocab_size",
        "tensor_data_layout",
        "decoder_start_token_id",
        "attention.layer_norm_epsilon",
        "rope.scaling.finetuned",
    }
)
# Entries that change what is computed, but not with these values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_gating_func": (0, 1),  # none said, and softmax
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
}

# Whole names.
READ_ELSEWHERE = frozenset(
    {
        "general.architecture",
        "general.alignment",
        "general.type",
        "bittorch.activation_bits",
        "bittorch.fuse_norms",
        "bittorch.bos_token_id",
        "bittorch.eos_token_ids",
        *HADAMARD_KEYS,
        "split.no",
        "split.count",
        "split.tensors.count",
    }
)
# Descriptions, and the history of the file.
HARMLESS_PREFIXES = ("general.", "quantize.", "mradermacher.")

# The tokenizer's: what `bittorch.models.tokenizer_files` and the configuration read.
TOKENIZER_READ = frozenset(
    {
        "tokenizer.huggingface.json",
        "tokenizer.chat_template",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
        "tokenizer.ggml.unknown_token_id",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.fim_pad_token_id",
        "tokenizer.ggml.fim_rep_token_id",
        "tokenizer.ggml.fim_sep_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.ggml.precompiled_charsmap",
    }
)
# Of tasks that generation from a prompt does not have; and further chat templates, each with a name.
TOKENIZER_HARMLESS = frozenset(
    {
        "tokenizer.chat_templates",
        "tokenizer.ggml.token_type_count",
        "tokenizer.ggml.added_tokens",
        "tokenizer.ggml.seperator_token_id",
        "tokenizer.ggml.cls_token_id",
        "tokenizer.ggml.mask_token_id",
        "tokenizer.ggml.fim_pre_token_id",
        "tokenizer.ggml.fim_suf_token_id",
        "tokenizer.ggml.fim_mid_token_id",
        "tokenizer.ggml.prefix_token_id",
        "tokenizer.ggml.suffix_token_id",
        "tokenizer.ggml.middle_token_id",
    }
)
TOKENIZER_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.suppress_tokens": ([],),
    "tokenizer.ggml.normalizer.lowercase": (False,),
    "tokenizer.ggml.normalizer.strip_accents": (False,),
}


def check_entries(entries: Mapping[str, Any], arch: str, what: str, also: Collection[str | None] = ()) -> None:
    """Refuses entries that may change what the model computes.

    Args:
        entries: of the header.
        arch: the architecture, which is supported.
        what: names the file.
        also: what is read of this architecture beyond `READ`.

    Raises:
        FormatError: names each entry and its value.
    """
    unknown = {key: value for key, value in entries.items() if not _is_known(key, value, entries, arch, also)}
    if unknown:
        some = ", ".join(_said(key, value, arch) for key, value in list(unknown.items())[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise choices.refusal(
            "gguf-entry",
            f"{what} has entries that are not supported and may change what the model computes: {some}{more}. Remove "
            "an entry that changes nothing, for example with gguf-new-metadata --remove-metadata of gguf-py",
        )


def _said(key: str, value: Any, arch: str) -> str:
    """An entry that is refused, and the values that are not."""
    known = NEUTRAL.get(key.removeprefix(f"{arch}."), ())
    return f"{key!r:.100} = {value!r:.60}" + (f" (supported: {', '.join(map(repr, known))})" if known else "")


def check_tokenizer_entries(entries: Mapping[str, Any]) -> None:
    """Warns of entries of a tokenizer that are not supported."""
    unknown = {key: value for key, value in entries.items() if not _is_known_of_tokenizer(key, value)}
    if unknown:
        some = ", ".join(f"{key!r:.100} = {value!r:.60}" for key, value in list(unknown.items())[:10])
        choices.warn(
            "gguf-tokenizer-entry",
            f"the tokenizer of the GGUF file has entries that are not supported: {some}. They are ignored; text may be "
            "tokenized or generated in another way than the model's own program does it",
        )


def _is_known(key: str, value: Any, entries: Mapping[str, Any], arch: str, also: Collection[str | None]) -> bool:
    if key == "general.type":
        return bool(value == "model")
    if key.startswith(f"{arch}."):
        name = key.removeprefix(f"{arch}.")
        if name in READ or name in HARMLESS or name in also:
            return True
        if name == "attention.sliding_window" and type(value) is int:  # no sequence is longer than the context
            return value == 0 or value >= int(entries.get(f"{arch}.context_length", value + 1))
        return value in NEUTRAL.get(name, ())
    return key in READ_ELSEWHERE or key.startswith((*HARMLESS_PREFIXES, "tokenizer."))


def _is_known_of_tokenizer(key: str, value: Any) -> bool:
    return (
        key in TOKENIZER_READ
        or key in TOKENIZER_HARMLESS
        or key.startswith("tokenizer.chat_template.")
        or value in TOKENIZER_NEUTRAL.get(key, ())
    )
