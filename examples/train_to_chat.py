"""A small language model, trained in ternary with transformers, then opened by bittorch: one line for each way out.

Run: python examples/train_to_chat.py                    (about a minute on two cores; nothing is downloaded)
     python examples/train_to_chat.py --out DIR          (keeps the files; then: bittorch chat --model DIR/own)
Needs the extras lm and hf.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import bittorch
from bittorch.models import LanguageModel
from bittorch.train import parameter_groups

PAIRS = [
    ("What colour is the sky?", "The sky is blue."),
    ("What colour is grass?", "Grass is green."),
    ("How many legs has a dog?", "A dog has four legs."),
    ("How many legs has a bird?", "A bird has two legs."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows give?", "Cows give milk."),
    ("Where do fish live?", "Fish live in water."),
    ("Who are you?", "I am a ternary model."),
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of the texts above, with a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([text for pair in PAIRS for text in pair], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATE
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> float:
    """Teaches the conversations by heart; the last loss."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for question, answer in PAIRS
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch.input_ids.where(batch.attention_mask.bool(), -100)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=3e-3)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a new directory for the files (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=150, help="of training (default: 150)")
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    # One scale per tensor and int8 activations: what a BitNet folder and I2_S hold without rounding.
    config = bittorch.TernaryQuantConfig(method="absmean", granularity="tensor", activation_bits=8)
    bittorch.quantize_(model, config, skip="lm_head")
    print(f"loss {train(model.train(), tokenizer, args.steps):.3f}")
    model.eval()

    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder) / "out"
        out.mkdir()
        # The four ways out, one line each.
        chat = LanguageModel.from_transformers(model, tokenizer)
        chat.save_pretrained(out / "own")  # then: bittorch chat --model out/own
        chat.save_pretrained(out / "model.gguf", to="gguf-i2_s")
        chat.save_pretrained(out / "bitnet", to="bitnet")
        # What transformers saves is opened as well: config.json says how the layers are quantised.
        model.save_pretrained(out / "masters")
        tokenizer.save_pretrained(out / "masters")

        ids = tokenizer(PAIRS[0][0], return_tensors="pt").input_ids
        with torch.inference_mode():
            expected = model(ids).logits
            for name in ("own", "model.gguf", "bitnet", "masters"):
                opened = LanguageModel.from_pretrained(out / name)
                same = torch.equal(opened(ids), expected)
                print(f"{name}: logits {'equal' if same else 'differ'}", end="; ")
                prompt = opened.tokenizer.encode_chat([{"role": "user", "content": PAIRS[0][0]}])
                print(f"{PAIRS[0][0]} {opened.generate([prompt], max_new_tokens=20)[0]}")


if __name__ == "__main__":
    main()
