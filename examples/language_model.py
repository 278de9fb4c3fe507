"""A language model from a file: generate, chat, stream, and convert a dense one to trits.

Run: python examples/language_model.py MODEL                     (a directory of safetensors, or a .gguf file)
     python examples/language_model.py MODEL --depth 4           (a dense model's layers as four ternary planes)
     python examples/language_model.py MODEL --depth 4 --save DIR
MODEL is a BitNet b1.58 or LLaMA checkpoint on this machine; nothing is downloaded. Needs the extra lm.
"""

import argparse
from pathlib import Path

import torch

from bittorch.models import GenerationConfig, LanguageModel


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Generate text with a packed language model.")
    parser.add_argument("model", type=Path, help="a directory of safetensors and config.json, or a .gguf file")
    parser.add_argument("--prompt", default="Why is the sky blue?", help="what to ask (default: %(default)r)")
    parser.add_argument("--depth", type=int, help="convert dense layers to so many ternary planes, 1 to 6")
    parser.add_argument("--save", type=Path, help="write the model as a bittorch checkpoint to this new directory")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer (default: 64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    model = LanguageModel.from_pretrained(args.model, depth=args.depth, head_depth=args.depth)
    assert model.tokenizer is not None
    if args.save:
        model.save_pretrained(args.save)
        print(f"written: {args.save}")

    # A chat model wants the conversation in the form that it was trained on.
    prompt: str | list[int] = args.prompt
    if model.tokenizer.chat_template is not None:
        prompt = model.tokenizer.encode_chat([{"role": "user", "content": args.prompt}])
    config = GenerationConfig(max_new_tokens=args.tokens, temperature=args.temperature, seed=args.seed)

    answer = model.stream([prompt], config)
    for piece in answer:
        print(piece.text, end="", flush=True)
    stats = answer.stats
    print(f"\n[{answer.finish_reasons[0]}: {stats.prompt_tokens} + {stats.new_tokens} tokens", end="")
    print(f", first after {stats.time_to_first_token:.2f} s, then {stats.tokens_per_second or 0:.1f} tokens/s]")


if __name__ == "__main__":
    main()
