"""What it costs to load a language model's checkpoint, beside reading its file.

Run: python benchmark/bench_checkpoint_io.py --layers 10
Writes layers of the shape of BitNet b1.58 2B-4T, with random trits and a fourth of its vocabulary, in every format.
Loading decodes all tensors to packed rows, or copies them. Each run is a process of its own; reading and loading take
turns. Times are user and system time of the processor, because wall-clock times of a busy machine say little. The peak
is that of resident memory, file pages included, over what the process had before.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import _timing
import torch

import bittorch
from bittorch.models import LanguageModel
from bittorch.models.config import ModelConfig
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import TARGETS, PackedWeight, from_memory, open_checkpoint, save
from bittorch.models.load import HEADS

READ, LOAD, MODEL = "read", "load", "model"


def random_model(layers: int) -> dict[str, torch.Tensor | PackedWeight]:
    tensors: dict[str, torch.Tensor | PackedWeight] = {}
    for name, shape in tensor_shapes(config(layers)).items():
        if name.endswith("_proj.weight"):
            codes = torch.randint(-1, 2, shape, dtype=torch.int8)
            tensors[name] = PackedWeight(bittorch.ops.ternary_pack(codes), torch.tensor([0.75]), shape[1])
        else:
            tensors[name] = torch.randn(shape).bfloat16()
    return tensors


def config(layers: int) -> ModelConfig:
    sizes = {"vocab_size": 32064, "hidden_size": 2560, "intermediate_size": 6912, "num_layers": layers}
    heads = {"num_heads": 20, "num_kv_heads": 5, "head_dim": 128, "max_positions": 4096}
    return ModelConfig(
        **sizes, **heads, hidden_act="relu2", architecture="bitnet", tie_embeddings=True, activation_bits=8
    )


def file_of(path: Path) -> Path:
    return path if path.is_file() else path / "model.safetensors"


def load(path: Path) -> None:
    kept = []
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names:
            ternary = checkpoint.info(name).ternary
            kept.append(checkpoint.packed(name) if ternary else checkpoint.dense(name, copy=True))


def read(path: Path) -> None:
    """Into new memory, as a program that needs the bytes would."""
    file_of(path).read_bytes()


def model_of(path: Path, head: str) -> LanguageModel:
    return LanguageModel.from_pretrained(path, tokenizer=False, head=head)


def three_tokens(model: LanguageModel) -> None:
    """Reads all weights, those that stay in the mapped file too."""
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))


def one_run(what: str, path: Path, head: str) -> None:
    """Prints seconds of the processor and bytes of peak memory, in a process that does nothing else."""
    import resource

    torch.set_num_threads(1)

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

    before, begin = status("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    Path("/proc/self/clear_refs").write_text("5")
    loaded = model_of(path, head) if what == MODEL else {LOAD: load, READ: read}[what](path)
    end = resource.getrusage(resource.RUSAGE_SELF)
    if isinstance(loaded, LanguageModel):
        three_tokens(loaded)
    print(end.ru_utime - begin.ru_utime + end.ru_stime - begin.ru_stime, status("VmHWM") - before)


def run_alone(what: str, path: Path, head: str = "auto") -> list[float]:
    command = [sys.executable, __file__, "--one", what, str(path), "--head", head]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(number) for number in out.split()]


def figures(path: Path, rounds: int) -> dict[str, float]:
    """Medians over rounds in which reading and loading take turns, and the largest peak."""
    size, runs = file_of(path).stat().st_size, {READ: [], LOAD: []}
    for _ in range(rounds):
        for what, found in runs.items():
            found.append(run_alone(what, path))
    return {
        "bytes": size,
        "read_s": median(run[0] for run in runs[READ]),
        "load_s": median(run[0] for run in runs[LOAD]),
        "load_over_read": median(b[0] / a[0] for a, b in zip(runs[READ], runs[LOAD], strict=True)),
        "peak_over_file": max(run[1] for run in runs[LOAD]) / size,
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--model", type=Path, help="a file of your own: time and peak of its model, no tokenizer")
    parser.add_argument("--head", choices=HEADS, default="auto", help="of that model (default: auto)")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)


def main() -> None:
    args = _timing.parse_args(__doc__, options)
    if args.one:
        one_run(args.one[0], Path(args.one[1]), args.head)
        return
    if args.model:
        runs = [run_alone(MODEL, args.model, args.head) for _ in range(args.rounds)]
        seconds, peak = median(run[0] for run in runs), max(run[1] for run in runs) / file_of(args.model).stat().st_size
        print(f"{args.model}: loads in {seconds:.2f} s; its peak, three tokens read, is {peak:.2f} of the file")
        return
    layers, rounds = (1, 1) if args.quick else (args.layers, args.rounds)
    record = {"machine": _timing.machine(args), "layers": layers, "rounds": rounds, "formats": {}}
    args.some_shapes = args.formats != list(TARGETS)
    print(f"{record['machine']['name']}, torch {torch.__version__}, {layers} layers")
    print(f"{'format':20} {'MB':>6} {'read, s':>8} {'load, s':>8} {'ratio':>6} {'peak / file':>12}")
    with tempfile.TemporaryDirectory() as folder:
        model = from_memory(config(layers), random_model(layers), {})
        for to in args.formats:
            path = Path(folder) / to
            save(model, path, to=to)
            found = record["formats"][to] = figures(path, rounds)
            print(
                f"{to:20} {found['bytes'] / 1e6:6.0f} {found['read_s']:8.2f} {found['load_s']:8.2f} "
                f"{found['load_over_read']:6.2f} {found['peak_over_file']:12.2f}",
                flush=True,
            )
    _timing.save(args, "checkpoint_io", record)


if __name__ == "__main__":
    main()
