"""Small vocabularies for tests."""

from __future__ import annotations

from bittorch.models import Tokenizer

TEXTS = {
    "English": "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?\n\n  Indented\tcode();  ",
    "German": "Größe, Straße, Übermut – »Anführung« kostet 3,50 €.",  # noqa: RUF001
    "Russian": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Arabic": "مرحبا بالعالم، كيف حالك اليوم؟",
    "Hindi": "नमस्ते दुनिया, आप कैसे हैं?",
    "Thai": "สวัสดีชาวโลก",
    "Chinese": "你好，世界！今天的天气很好。",  # noqa: RUF001
    "Japanese": "吾輩は猫である。名前はまだ無い。ｶﾀｶﾅ",
    "Korean": "안녕하세요, 세계!",
    "emoji": "🤷🏽‍♀️ 👩‍👩‍👧‍👦 🇩🇪 ✔️",
    "combining": "e\u0301 a\u030a \u1e9b\u0323 \u00a0\u2003.",
    "code": "def f(x: int) -> int:\n    return x**2  # \\n\r\n\t{'a': [1, 2.5e-3]}",
    "special": "<s>[INST] <|im_start|> </s> <0x0A> \u2581 Ġ",
    "empty": "",
    "spaces": "   ",
}


def byte_tokenizer() -> Tokenizer:
    """Token i is byte i, 256 to 299 are merges of letters, and 256 ends a text."""
    from bittorch.models.vocabulary import byte_characters, byte_level

    texts = list(byte_characters())
    merges = [(first, second) for first in "aeio" for second in "nrstlmdcbgf"]
    vocab = {text: number for number, text in enumerate([*texts, *(a + b for a, b in merges)])}
    return Tokenizer(byte_level(vocab, merges, ("[a-z]+",), False), {"eos_token": "an"})
