"""What it costs to load a language model's checkpoint, beside reading its file.

Run: python benchmark/bench_checkpoint_io.py --layers 10
Writes layers of the shape of BitNet b1.58 2B-4T, with random trits and a fourth of its vocabulary, in every format.
Loading decodes all tensors to packed rows, or copies them. Each run is a process of its own; reading and loading take
turns. Times are user and system time of the processor, because wall-clock times of a busy machine say little. The peak
is that of resident memory, file pages included, over what the process had before.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

import bittorch
from bittorch.models.config import ModelConfig
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import TARGETS, PackedWeight, from_memory, open_checkpoint, save

READ, LOAD = "read", "load"


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


def one_run(what: str, path: Path) -> None:
    """Prints seconds of the processor and bytes of peak memory, in a process that does nothing else."""
    import resource

    torch.set_num_threads(1)

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

    before, begin = status("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    Path("/proc/self/clear_refs").write_text("5")
    (load if what == LOAD else read)(path)
    end = resource.getrusage(resource.RUSAGE_SELF)
    print(end.ru_utime - begin.ru_utime + end.ru_stime - begin.ru_stime, status("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one_run(args.one[0], Path(args.one[1]))
        return
    print(f"{platform.machine()}, torch {torch.__version__}, bittorch {bittorch.__version__}, {args.layers} layers")
    print(f"{'format':20} {'MB':>6} {'read, s':>8} {'load, s':>8} {'ratio':>6} {'peak / file':>12}")
    with tempfile.TemporaryDirectory() as folder:
        model = from_memory(config(args.layers), random_model(args.layers), {})
        for to in TARGETS:
            path = Path(folder) / to
            save(model, path, to=to)
            size, runs = file_of(path).stat().st_size, {READ: [], LOAD: []}
            for _ in range(args.rounds):
                for what, found in runs.items():
                    command = [sys.executable, __file__, "--one", what, str(path)]
                    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    found.append([float(number) for number in out.split()])
            seconds = {what: median(run[0] for run in found) for what, found in runs.items()}
            ratio = median(b[0] / a[0] for a, b in zip(runs[READ], runs[LOAD], strict=True))
            peak = max(run[1] for run in runs[LOAD]) / size
            print(f"{to:20} {size / 1e6:6.0f} {seconds[READ]:8.2f} {seconds[LOAD]:8.2f} {ratio:6.2f} {peak:12.2f}")


if __name__ == "__main__":
    main()
