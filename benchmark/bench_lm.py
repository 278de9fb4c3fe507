"""Language models: prefill and decoding, packed against dense, against the sum of their kernels, and loading.

Two models: a random one of the shape of BitNet b1.58 2B4T (30 layers, 2.4 G weights), W1.58A8 with a head in four
planes, against the same shape dense in bf16; and, with --model DIR or FILE.gguf, a real dense one against its
conversion. Decoding is timed one token at a time behind a prompt. The kernels' own time is that of every packed product
of the model called in order, so weights come from memory as they do in the model.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import _timing
import torch
from torch import Tensor, nn

from bittorch.models import LanguageModel, LoadOptions, ModelConfig
from bittorch.models.config import EMBEDDING
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import Checkpoint, PackedWeight, TensorInfo, from_memory
from bittorch.models.io.blocks import KINDS
from bittorch.models.io.checkpoint import StoredTensor
from bittorch.models.packed_weight import BlockWeight
from bittorch.nn import TernaryLinearInference

LEGAL = torch.tensor(
    [a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)]
)
HEAD_DEPTH = 4
DECODE_BEHIND = 64  # tokens in the cache while decoding is timed


def config_2b4t(layers: int, tied: bool = True) -> ModelConfig:
    """The sizes of BitNet b1.58 2B4T; not tied where the head is stored in planes."""
    return ModelConfig(
        vocab_size=128256,
        hidden_size=2560,
        intermediate_size=6912,
        num_layers=layers,
        num_heads=20,
        num_kv_heads=5,
        head_dim=128,
        max_positions=4096,
        rope_theta=500000.0,
        hidden_act="relu2",
        architecture="bitnet",
        tie_embeddings=tied,
        activation_bits=8,
    )


class RandomTensor(StoredTensor):
    """Random values of a shape, made when they are asked for."""

    def __init__(self, name: str, shape: tuple[int, ...], ternary: bool) -> None:
        super().__init__(TensorInfo(name, "BF16", shape, 0, ternary))

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        shape = self.info.shape
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype or torch.bfloat16)
        block = (torch.randn(min(shape[0], 512), shape[1]) / shape[1] ** 0.5).to(dtype or torch.bfloat16)
        return block.repeat(-(-shape[0] // len(block)), 1)[: shape[0]]

    def packed(self, out: Tensor | None = None) -> PackedWeight:
        n, k = self.info.shape
        depth = HEAD_DEPTH if self.info.name == "lm_head.weight" else 1
        block = LEGAL.to(torch.uint8)[torch.randint(0, 81, (min(n, 2048), k // 4))]
        codes = block.repeat(-(-depth * n // len(block)), 1)[: depth * n]
        scale = torch.tensor([1.5 / k**0.5])
        return PackedWeight(codes, scale if depth == 1 else scale.repeat(depth * n), k, depth)


def random_checkpoint(config: ModelConfig, ternary: bool) -> Checkpoint:
    """Random weights, the linear layers of the decoder ternary or not, and a head of its own in planes."""
    tensors = {
        name: RandomTensor(name, shape, ternary and name.endswith(("_proj.weight", "lm_head.weight")))
        for name, shape in tensor_shapes(config).items()
    }
    return Checkpoint(Path("random"), "memory", config, tensors, {}, {})


def packed_layers(model: LanguageModel) -> list[TernaryLinearInference]:
    return [module for module in model.modules() if isinstance(module, TernaryLinearInference)]


def kernels_alone(model: LanguageModel, tokens: int) -> Any:
    """A call of every packed layer once, in order, each with activations of its size; a dense head too."""
    layers: list[nn.Module] = list(packed_layers(model))
    if isinstance(model.lm_head, nn.Linear):
        layers.append(model.lm_head)
    dtype = {nn.Linear: model.lm_head.weight.dtype} if isinstance(model.lm_head, nn.Linear) else {}
    inputs = {k: torch.randn(tokens, k).to(model.dtype) for k in {layer.in_features for layer in layers}}
    last = {k: x[-1:] for k, x in inputs.items()}

    def call() -> None:
        for layer in layers:
            x = (last if layer is model.lm_head else inputs)[layer.in_features]
            layer(x.to(dtype.get(type(layer), x.dtype)))

    return call


class Decoding:
    """One step behind a prompt; every call decodes the same position, so that calls can be repeated."""

    def __init__(self, model: LanguageModel, behind: int) -> None:
        self.model, self.behind = model, behind
        self.cache = model.new_cache(1, behind + 1)
        model.step(torch.arange(behind) + 5, [behind], self.cache, last_only=True)

    def __call__(self) -> Tensor:
        self.cache.truncate(0, self.behind)
        return self.model.step(torch.tensor([7]), [1], self.cache, last_only=True)


def prefill(model: LanguageModel, tokens: int) -> Any:
    ids = torch.arange(tokens) % (model.config.vocab_size - 10) + 5

    def call() -> Tensor:
        return model.step(ids, [tokens], model.new_cache(1, tokens), last_only=True)

    return call


def interleaved(calls: dict[str, Any], args: argparse.Namespace, rounds: int) -> dict[str, dict[str, float]]:
    """Median and quartiles of each call's time, all having their turn in every round.

    On one thread it is the thread's CPU time, which is the wall clock's on an idle machine; what other programs take
    of the core does not count. Calls last long enough for its resolution.
    """
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):  # the first warms up
        for name, call in calls.items():
            start = clock()
            call()
            if turn:
                times[name].append(clock() - start)
    ordered = {name: sorted(values) for name, values in times.items()}
    return {
        name: {
            "median_s": median(values),
            "quartile_low_s": values[len(values) // 4],
            "quartile_high_s": values[3 * len(values) // 4],
            "rounds": rounds,
        }
        for name, values in ordered.items()
    }


def measure(models: dict[str, LanguageModel], args: argparse.Namespace) -> dict[str, Any]:
    """Decoding and prefill of each, kernels of the packed ones, all interleaved."""
    calls = {f"decode {name}": Decoding(model, DECODE_BEHIND) for name, model in models.items()}
    for name, model in models.items():
        if packed_layers(model):
            calls[f"kernels {name}"] = kernels_alone(model, 1)
    times = interleaved(calls, args, args.rounds)
    if args.prompt:
        fills = {f"prefill {args.prompt} {name}": prefill(model, args.prompt) for name, model in models.items()}
        times |= interleaved(fills, args, max(2, args.rounds // 4))
    for name, row in times.items():
        tokens = args.prompt if name.startswith("prefill") else 1
        row["tokens_per_s"] = tokens / row["median_s"]
        print(f"{name:40} {_timing.time_text(row['median_s']):>10} {row['tokens_per_s']:10.1f} tokens/s")
    return times


LOAD = """
import sys, time, torch
from bittorch.models import LanguageModel
torch.set_num_threads(int(sys.argv[2]))
def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
before = resident("VmRSS")
start = time.process_time()
model = LanguageModel.from_pretrained(sys.argv[1], dtype=torch.float32, tokenizer=False)
seconds = time.process_time() - start
print(seconds, resident("VmHWM") - before)
"""


def loading(model: LanguageModel, args: argparse.Namespace) -> dict[str, Any]:
    """CPU time and peak memory of `from_pretrained` in a process of its own, beside reading the cached file."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        path = Path(folder) / "model"
        model.save_pretrained(path)
        weights = path / "model.safetensors"
        reads, loads, peaks = [], [], []
        buffer = bytearray(1 << 24)
        for _ in range(3):
            start = time.process_time()
            with weights.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
            reads.append(time.process_time() - start)
            command = [sys.executable, "-c", LOAD, str(path), str(args.threads)]
            line = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout.split()
            loads.append(float(line[0]))
            peaks.append(int(line[1]))
        size = weights.stat().st_size
    return {"bytes": size, "read_s": median(reads), "load_s": median(loads), "peak_bytes": max(peaks)}


def random_blocks(rows: int, columns: int, kind: str) -> BlockWeight:
    """A table in quantised blocks, scales near 0.01."""
    weights, size, scales = KINDS[kind]
    blocks = torch.randint(0, 256, (rows, columns // weights, size), dtype=torch.uint8)
    for at in scales:
        blocks[:, :, at : at + 2] = torch.tensor([0.01]).half().view(torch.uint8)
    return BlockWeight(blocks.flatten(1), kind, columns)


def quantised_head(args: argparse.Namespace) -> dict[str, Any]:
    """A small model whose tied table is in blocks, its head in int8 rows and as stored, against a float32 table."""
    sizes = {"vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 2816, "num_heads": 8, "num_kv_heads": 2}
    config = dataclasses.replace(config_2b4t(args.layers), **sizes)
    table, models = random_blocks(config.vocab_size, config.hidden_size, args.head), {}
    source = random_checkpoint(config, True)
    layers = {key: source.packed(key) if source.info(key).ternary else source.dense(key) for key in source.names}
    floats = table.dense(torch.float32)
    for name, held_as, head in (
        (args.head, "int8", table),
        (args.head, "stored", table),
        ("float32", "stored", floats),
    ):
        name += f" {held_as}" if head is table else ""
        source = from_memory(config, {**layers, EMBEDDING: head}, {})
        options = LoadOptions(dtype=torch.float32, head=held_as)
        model = LanguageModel.from_checkpoint(source, options, tokenizer=False)
        models[f"head {name}"] = model
        held = {value.data_ptr(): value.nbytes for value in [*model.parameters(), *model.buffers()]}
        print(f"head {name:12} {sum(held.values()) / 1e6:8.1f} MB of weights")
    times = measure(models, args)
    decode = [times[f"decode {name}"]["median_s"] for name in models]
    verdicts = [
        _timing.verdict(f"decoding with int8 rows of {args.head} against {other}", time / decode[0], 1)
        for other, time in (("the blocks", decode[1]), ("float32", decode[2]))
    ]
    return {"layers": args.layers, "head": args.head, "times": times, "verdicts": verdicts}


def random_2b(args: argparse.Namespace) -> dict[str, Any]:
    load = LanguageModel.from_checkpoint
    source = random_checkpoint(config_2b4t(args.layers, tied=False), True)
    packed = load(source, LoadOptions(dtype=torch.float32), tokenizer=False)
    source = random_checkpoint(config_2b4t(args.layers), False)
    dense = load(source, LoadOptions(dtype=torch.bfloat16), tokenizer=False)
    names = {"packed": packed, "dense bf16": dense}
    times = measure(names, args)
    del dense, names
    decode, kernels = times["decode packed"]["median_s"], times["kernels packed"]["median_s"]
    verdicts = [
        _timing.verdict("decoding, share of kernels and head", kernels / decode, 0.8),
        _timing.verdict("decoding against dense bf16", times["decode dense bf16"]["median_s"] / decode, 4),
    ]
    record: dict[str, Any] = {"layers": args.layers, "times": times, "verdicts": verdicts}
    if args.prompt:
        fill, fill_dense = (times[f"prefill {args.prompt} {name}"]["median_s"] for name in ("packed", "dense bf16"))
        verdicts.append(_timing.verdict(f"prefill {args.prompt} against dense bf16", fill_dense / fill, 1))
    if args.loading:
        found = record["loading"] = loading(packed, args)
        read, loaded = found["read_s"], found["load_s"]
        print(f"checkpoint: {found['bytes'] / 1e6:.0f} MB, read in {read:.2f} s, loaded in {loaded:.2f} s")
        ratio, peak = loaded / read, found["peak_bytes"] / found["bytes"]
        verdicts.append(_timing.verdict("loading against reading the file", ratio, 2, at_least=False))
        verdicts.append(_timing.verdict("peak memory of loading", peak, 1.15, at_least=False))
    return record


def converted(args: argparse.Namespace) -> dict[str, Any]:
    """A real dense model in both floating types, and in planes."""
    load = LanguageModel.from_pretrained
    kinds: dict[str, dict[str, Any]] = {
        "": {},
        ", groups of 64": {"group_size": 64},
        ", int8 x": {"activation_bits": 8},
    }
    models = {
        "dense fp32": load(args.model, dtype=torch.float32, tokenizer=False),
        "dense bf16": load(args.model, dtype=torch.bfloat16, tokenizer=False),
        **{
            f"depth {args.depth}{name}": load(
                args.model, depth=args.depth, head_depth=args.depth, tokenizer=False, **options
            )
            for name, options in kinds.items()
        },
    }
    times = measure(models, args)
    return {"model": Path(args.model).name, "depth": args.depth, "times": times}


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=30, help="of the random model; fewer need less memory")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill (default: 512, 0: none)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds; a fourth of them for the prefill (default: 9)")
    parser.add_argument("--model", help="a real dense model instead: a directory, or a .gguf file")
    parser.add_argument(
        "--head", choices=sorted(KINDS), help="a small model with its tied table in these blocks instead"
    )
    parser.add_argument("--depth", type=int, default=4, help="planes of its conversion (default: 4)")
    parser.add_argument("--no-loading", dest="loading", action="store_false", help="do not time loading")
    parser.add_argument("--scratch", help="directory for the checkpoint whose loading is timed")


def main() -> None:
    args = _timing.parse_args(__doc__ or "", extend)
    if args.quick:
        args.layers, args.prompt, args.rounds = 1, 16, 2
    record = {"machine": _timing.machine(args)}
    given = f" --model {Path(args.model).name}" if args.model else f" --layers {args.layers}"
    given += f" --head {args.head}" if args.head else ""
    record["machine"]["command"] += f"{given} --prompt {args.prompt}" + " --no-loading" * (not args.loading)
    print(_timing.header(record["machine"]))
    with torch.inference_mode():
        record |= quantised_head(args) if args.head else converted(args) if args.model else random_2b(args)
    made_up = f"head_{args.head.lower()}" if args.head else f"2b4t_{args.layers}layers"
    name = "bench_lm_" + (_timing.slug(Path(args.model).stem) if args.model else made_up)
    _timing.save(args, name, record)


if __name__ == "__main__":
    main()
