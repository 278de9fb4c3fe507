"""One packed model, an adapter for each task, merged bit for bit.

A small ternary language model learns to count in steps of one and is packed. Two adapters teach it to count in steps
of two and of three, on the packed codes themselves (form "grid"), the second one through PEFT. Each is a small file;
they are switched on one base, and merged into ordinary packed layers.

Run: python examples/lora_on_packed.py                  (under a minute on two cores; nothing is downloaded)
Needs the extra hf.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import bittorch
import bittorch.hf.peft
from bittorch.train import add_adapters, load_adapter, merge_adapters, save_adapter, set_adapter

WORDS = 32


def counting(step: int) -> torch.Tensor:
    return (torch.arange(WORDS)[:, None] + step * torch.arange(16)) % WORDS


def train(model: nn.Module, step: int, steps: int, rate: float) -> None:
    data = counting(step)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=data, labels=data).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, step: int) -> float:
    """Of the tokens after the second, from which the step can be seen."""
    data = counting(step)
    return float((model(data).logits[:, 1:-1].argmax(-1) == data[:, 2:]).float().mean())


@torch.inference_mode()
def logits(model: nn.Module) -> torch.Tensor:
    return model(counting(2)).logits


def make_base(steps: int) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, max_position_embeddings=64, **sizes))
    bittorch.quantize_(model, skip="lm_head")
    train(model, 1, steps, 3e-3)
    return bittorch.export_for_inference(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="of each training (default: 120)")
    args = parser.parse_args()
    base = make_base(args.steps)
    print(
        f"base: steps of one {accuracy(base, 1):.1%}, of two {accuracy(base, 2):.1%}, of three {accuracy(base, 3):.1%}"
    )

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        adapted = copy.deepcopy(base)
        layers = add_adapters(adapted, "two", form="grid", r=8, k=2.0)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        train(adapted, 2, args.steps, 1e-2)
        save_adapter(adapted, out / "two.safetensors")
        size = (out / "two.safetensors").stat().st_size
        print(f"adapter two: {len(layers)} layers, {trained:,} parameters, {size:,} bytes, {accuracy(adapted, 2):.1%}")

        second = copy.deepcopy(base)
        load_adapter(second, out / "two.safetensors", "two")
        print(f"loaded: logits {'equal' if torch.equal(logits(second), logits(adapted)) else 'differ'}")
        set_adapter(second, None)
        print(f"switched off: logits {'equal' if torch.equal(logits(second), logits(base)) else 'differ'} to the base")

        expected = logits(adapted)
        print(merge_adapters(adapted))
        print(f"merged: logits {'equal' if torch.equal(logits(adapted), expected) else 'differ'}")
        adapted.save_pretrained(out / "merged")  # an ordinary packed model of transformers

        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = bittorch.hf.peft.register(LoraConfig(r=8, lora_alpha=16, target_modules=names), exact=True)
        with_peft = get_peft_model(copy.deepcopy(base), config)
        train(with_peft, 3, args.steps, 1e-2)
        with_peft.save_pretrained(out / "three")
        again = bittorch.hf.peft.load(copy.deepcopy(base), out / "three")
        expected = logits(with_peft)
        print(f"PEFT, adapter three: {accuracy(with_peft, 3):.1%}")
        merged = again.merge_and_unload()
        print(f"PEFT, loaded and merged: logits {'equal' if torch.equal(logits(merged), expected) else 'differ'}")


if __name__ == "__main__":
    main()
