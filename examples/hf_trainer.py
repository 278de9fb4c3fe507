"""A ternary language model trained by the Trainer of transformers, resumed, packed, saved and loaded by transformers.

Run: python examples/hf_trainer.py                      (under a minute on two cores; nothing is downloaded)
     python examples/hf_trainer.py --out DIR            (keeps the folders)
Needs the extra hf.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import bittorch
import bittorch.hf  # transformers knows packed folders and saved masters from here on

WORDS = 32  # tokens of the made language: each sequence counts on from its first token, in steps of its second


def make_data(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    start, step = (
        torch.randint(0, WORDS, (count, 1), generator=generator),
        torch.randint(1, 4, (count, 1), generator=generator),
    )
    rows = (start + step * torch.arange(16)) % WORDS
    return [{"input_ids": row, "labels": row} for row in rows]


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    bittorch.quantize_(model, bittorch.TernaryQuantConfig(method="absmean", activation_bits=8), skip="lm_head")
    return model


def make_trainer(out: Path, steps: int) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        save_steps=steps // 2,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    return Trainer(make_model(), arguments, train_dataset=make_data(512))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a new directory for the folders (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=160, help="of training, an even number (default: 160)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        whole = make_trainer(out, args.steps)
        print(f"loss {whole.train().training_loss:.3f} on average")
        model = whole.model.eval()

        resumed = make_trainer(out, args.steps)
        resumed.train(resume_from_checkpoint=str(out / f"checkpoint-{args.steps // 2}"))
        pairs = zip(model.parameters(), resumed.model.parameters(), strict=True)
        print(f"resumed half way: weights {'equal' if all(torch.equal(a, b) for a, b in pairs) else 'differ'}")

        masters = AutoModelForCausalLM.from_pretrained(out / f"checkpoint-{args.steps}")  # layers to train on
        packed = bittorch.export_for_inference(model)
        packed.save_pretrained(out / "packed")
        loaded = AutoModelForCausalLM.from_pretrained(out / "packed")
        ids = torch.tensor([[3, 5, 7, 9, 11]])
        with torch.inference_mode():
            expected = model(ids).logits
            for name, found in (("masters", masters), ("packed", packed), ("loaded", loaded)):
                print(f"{name}: logits {'equal' if torch.equal(found(ids).logits, expected) else 'differ'}")
        tokens = loaded.generate(
            ids, max_new_tokens=5, do_sample=False, cache_implementation="static", disable_compile=True
        )
        print(f"{ids[0].tolist()} goes on with {tokens[0, ids.shape[1] :].tolist()}")
        sizes = [
            path.stat().st_size
            for path in (out / f"checkpoint-{args.steps}" / "model.safetensors", out / "packed" / "model.safetensors")
        ]
        print(f"masters {sizes[0]:,} bytes, packed {sizes[1]:,}")


if __name__ == "__main__":
    main()
