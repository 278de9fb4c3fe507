"""How byte-level vocabularies cut text into words before merging, by the names that GGUF files use."""

from __future__ import annotations

CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _cl100k(digits: str, letter: str = r"\p{L}") -> str:
    """The pattern of GPT-4 and its heirs; ``digits`` is how many digits are one word, ``letter`` what words are of."""
    return (
        rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?[{letter}]+|\p{{N}}{digits}| ?[^\s{letter}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


LLAMA3 = _cl100k("{1,3}")
_ONE_DIGIT = (r"\p{N}", GPT2)
_THREE_DIGITS = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")

# Each pattern cuts what the one before has left in pieces.
PATTERNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "gigachat"), (GPT2,)),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon_e", "falcon-h1", "pixtral", "lfm2", "dbrx", "smaug-bpe"),
        (LLAMA3,),
    ),
    **dict.fromkeys(("qwen2", "stablelm2", "hunyuan", "deepseek-r1-qwen", "megrez"), (_cl100k(""),)),
    "qwen35": (_cl100k("", r"\p{L}\p{M}"),),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _ONE_DIGIT),
    "falcon": _THREE_DIGITS,
    "bitnet.cpp-falcon3": (*_THREE_DIGITS[:2], "[0-9]"),
    "default": (*_THREE_DIGITS[:2], r"\p{N}+", _THREE_DIGITS[2]),
}
# Names that other programs do not know.
OURS = frozenset(("bitnet.cpp-falcon3",))
# Those whose texts begin with a token of their own where the file does not say.
BEGINS = frozenset(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon_e", "falcon-h1", "pixtral", "lfm2"))
# Vocabularies in which a word that is a token needs no merging.
WHOLE_WORDS = BEGINS
# Names that programs read differently: what is taken for them, and who takes something else.
DISPUTED = {
    "falcon3": "cut into words as LLaMA 3 does, as llama.cpp has it; bitnet.cpp cuts at punctuation and every digit, "
    "which is pre_tokenizer='bitnet.cpp-falcon3'",
    "falcon_e": "cut into words as LLaMA 3 does, as ik_llama.cpp has it; bitnet.cpp, whose converter writes this name, "
    "has a rule of its own",
}


def patterns_of(name: str) -> tuple[str, ...]:
    """The patterns of a pre-tokenizer. Raises ValueError, which names it, where it is not known."""
    if name not in PATTERNS:
        raise ValueError(
            f"the pre-tokenizer {name!r} is not known, so text would be cut wrongly; known are {', '.join(PATTERNS)}. "
            f"Use the tokenizer.json of the model, or give pre_tokenizer= if one of these cuts text alike"
        )
    return PATTERNS[name]
