"""A small character language model (nanoGPT-like decoder) with ternary linear layers, and its FP32 twin.

Run: python examples/tiny_char_lm_ternary.py --compare
All linear layers of the blocks are ternary; the embeddings, the norms and the output head (tied to the embedding) stay
FP32. Validation loss is measured on the last tenth of the text. The ternary net is exported to 2-bit weights, which
must give the same logits bit for bit (exit code 1 otherwise), and the packed net writes a sample.
Text: Python's own language reference, which comes with the interpreter; `--data FILE` uses any other text, and
`--download` fetches TinyShakespeare (1.1 MB) once.
"""

import argparse
import http.client
import sys
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bittorch

CONTEXT, WIDTH, HEADS, LAYERS = 64, 128, 4, 4
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small ternary character language model.")
    parser.add_argument("--compare", action="store_true", help="also train the FP32 twin with the same recipe")
    parser.add_argument(
        "--cuda", action="store_true", help="train on the GPU; on the CPU, with a line that says so, without"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="UTF-8 text (default: Python's language reference)")
    source.add_argument("--download", action="store_true", help="use TinyShakespeare; downloads it once to --cache")
    parser.add_argument(
        "--cache", type=Path, default=Path("demo_output"), help="folder of downloads (default: demo_output)"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=500, help="optimiser steps (default: 500)")
    length.add_argument("--epochs", type=int, help="passes over the training text, instead of --steps")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences of a step (default: 16)")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; these layers are small (default: 1)")
    args = parser.parse_args()
    if min(args.steps, args.batch_size, args.threads, 1 if args.epochs is None else args.epochs) < 1:
        parser.error("--steps, --epochs, --batch-size and --threads must be at least 1")
    if args.cuda and not torch.cuda.is_available():
        print("--cuda: PyTorch sees no CUDA device here; this runs on the CPU", file=sys.stderr)
        args.cuda = False
    torch.set_num_threads(args.threads)
    return args


def progress(steps: Iterable, what: str) -> Iterable:
    try:
        from tqdm import tqdm
    except ImportError:
        sys.exit("the progress bar needs tqdm; run: pip install tqdm")
    return tqdm(steps, desc=what)


def download(folder: Path) -> Path:
    """TinyShakespeare in ``folder``, fetched where it is not there yet; it appears only whole."""
    path = folder / "tinyshakespeare.txt"
    if path.exists():
        return path
    print(f"downloading {SHAKESPEARE} to {path}", file=sys.stderr)
    try:
        with urllib.request.urlopen(SHAKESPEARE, timeout=20) as response:
            text = response.read()
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(text)
        part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        sys.exit(
            f"--download: {error}; this machine cannot fetch {SHAKESPEARE}. Copy the text to {path} by other means, "
            "give any text with --data FILE, or leave --download out"
        )
    return path


def load_text(path: Path | None) -> str:
    if path is None:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            sys.exit("this Python comes without pydoc_data; give a text with --data FILE")
        return "\n".join(topics.values())
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"--data {path}: {error}; give a readable UTF-8 text file")


class Block(nn.Module):
    def __init__(self, linear: type[nn.Linear]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.up, self.down = linear(WIDTH, 4 * WIDTH), linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharLM(nn.Module):
    def __init__(self, characters: int, linear: type[nn.Linear]) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(linear) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.token.weight)


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def train(model: nn.Module, text: Tensor, args: argparse.Namespace, name: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    batches = torch.Generator().manual_seed(args.seed)
    bar = progress(range(args.steps), f"training {name:8}")
    for step in bar:
        starts = torch.randint(len(text) - CONTEXT, (args.batch_size, 1), generator=batches)
        loss = loss_of(model.train(), text[(starts + torch.arange(CONTEXT + 1)).to(text.device)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")


@torch.inference_mode()
def validate(model: nn.Module, windows: Tensor) -> float:
    return sum(loss_of(model.eval(), part).item() * len(part) for part in windows.split(64)) / len(windows)


@torch.inference_mode()
def sample(model: nn.Module, ids: Tensor, count: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    for _ in range(count):
        logits = model(ids[:, -CONTEXT:])[:, -1] / 0.8
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
    return ids


def main() -> None:
    args = parse_args()
    text = load_text(download(args.cache) if args.download else args.data)
    characters = sorted(set(text))
    code = {character: i for i, character in enumerate(characters)}
    ids = torch.tensor([code[c] for c in text], device="cuda" if args.cuda else "cpu")
    cut = len(ids) * 9 // 10
    windows = ids[cut:].unfold(0, CONTEXT + 1, CONTEXT)[:512] if len(ids) - cut > CONTEXT else ids[:0]
    if not len(windows):
        sys.exit(f"the text has {len(ids)} characters; at least {10 * (CONTEXT + 2)} are needed, give a longer --data")
    if args.epochs is not None:
        args.steps = args.epochs * max(1, cut // (args.batch_size * CONTEXT))
    print(f"{len(ids)} characters of {len(characters)} kinds; {windows.numel()} to validate; seed {args.seed}")

    models: dict[str, nn.Module] = {}
    kinds = {"FP32": nn.Linear, "ternary": bittorch.nn.TernaryLinear}
    for name in kinds if args.compare else ["ternary"]:
        torch.manual_seed(args.seed)
        models[name] = CharLM(len(characters), kinds[name]).to(ids.device)
        train(models[name], ids[:cut], args, name)
    models["exported"] = packed = bittorch.export_for_inference(models["ternary"])

    print(f"\n{'':10}{'validation loss (nats)':>24}{'bytes of the blocks':>22}")
    for name, model in models.items():
        size = sum(t.numel() * t.element_size() for t in model.blocks.state_dict().values())
        print(f"{name:10}{validate(model, windows):24.4f}{size:22,}")
    with torch.inference_mode():
        same = all(torch.equal(models["ternary"](w[:, :-1]), packed(w[:, :-1])) for w in windows.split(64))
    if not same:
        sys.exit("FAIL: the exported model gives other logits than the trained one; please report this")
    print("OK: trained and exported logits are equal bit for bit on the whole validation set")
    written = sample(packed, windows[:1, :8], 200, args.seed)[0]
    print("Sample of the exported model:\n" + "".join(characters[i] for i in written.tolist()))


if __name__ == "__main__":
    main()
