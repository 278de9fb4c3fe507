"""CPU kernels of one linear layer against their peers and against what the machine can do, hot and cold.

Run: python benchmark/bench_cpu_kernels.py --threads 1
Every figure stands beside a limit that cpu_limits.c measures in the same run: the peak of the instruction that does the
products (weights hot: the same ones each call), and the bandwidth of memory (cold, batch 1: other weights each call and
none of them in a cache). Peers: nn.Linear in fp32 and bf16, torch's dynamic int8, torch._int_mm, and onnxruntime's
MatMulNBits in 2 and 4 bits and dynamic int8 (pip install onnxruntime onnx; without them, rows say "not installed").
--quick, --shapes, --batches and --modes choose a part; a part is written only where --json says.
"""

import argparse
import contextlib
import gc
import importlib
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _timing as timing
import torch
from torch import Tensor, nn

import bittorch
from bittorch import _C

SHAPES = [  # in_features, out_features
    (4096, 1024),
    (768, 512),
    *((h, h) for h in (1024, 2048, 4096, 8192)),
    (2560, 2560),
    (6912, 2560),
    (2560, 6912),
    (640, 2560),
]
BATCHES = (1, 8, 32, 128, 512)
COLD_BATCHES = (1, 8)  # larger ones read the weights once for many products: hot says the same
QUICK_SHAPES, QUICK_BATCHES = [(2560, 2560)], (1, 8, 32)
COPIES = 16  # of the weights, at most, in a cold turn, besides a spare one
LIMIT_RUNS = 3  # before the rows, and again after them
LIMIT_KEYS = ("peak_gops", "read_gbps")
LONG_CALL = 0.02  # seconds; where weights come from at its start no longer shows
ORT_BLOCK = 128  # columns that share a scale: the fastest of 32, 64 and 128 for 2 bits; 256 has no kernel

FP32, BF16, INT8, INT_MM = "nn.Linear fp32", "nn.Linear bf16", "torch dynamic int8", "torch._int_mm, codes only"
ORT2, ORT4, ORT8 = "onnxruntime 2 bit", "onnxruntime 4 bit", "onnxruntime dynamic int8"
A8_MODULE = "TernaryLinearInference W1.58A8"
ONE_THREAD = ", one thread"

# The instruction behind a variant's products, as the start of a name in cpu_limits.c.
PEAKS = {
    ("ternary_linear_w2a8", "avx512vnni"): "vpdpbusd",
    ("ternary_linear_w2a8", "avxvnni"): "vpdpbusd",
    ("ternary_linear_w2a8", "avx2"): "vpmaddubsw",
    ("ternary_linear_w2a8", "neon"): "smlal",
    ("ternary_linear_w2a8", "neondot"): "sdot",
    ("ternary_linear_w2a8", "neoni8mm"): "smmla",
    ("ternary_linear_packed", "avx512bf16"): "vdpbf16ps",
    ("ternary_linear_packed", "avx512"): "fma_fp32",
    ("ternary_linear_packed", "avx2"): "fma_fp32",
    ("ternary_linear_packed", "neon"): "fma_fp32",
}
INT8_PEAKS = ("vpdpbusd", "smmla", "sdot", "vpmaddubsw", "smlal")
BF16_PEAKS = ("vdpbf16ps", "fma_fp32")

Bind = Callable[[Tensor], timing.Call]  # input -> a call of one layer with it


@dataclass
class Candidate:
    """A way to compute a layer: `make` gives one copy of its weights, ready to be bound to an input."""

    name: str
    make: Callable[[], Bind]
    weight_bytes: float
    peaks: tuple[str, ...]  # the first that this machine has
    dtype: torch.dtype = torch.float32
    threads: int | None = None  # other than those of the run


def limits(threads: int) -> dict[str, Any]:
    """Compiles cpu_limits.c by $CC or cc and runs it some times: the most of each figure, as others are busy too."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    source = Path(__file__).parent / "cpu_limits.c"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cpu_limits"
        try:
            subprocess.run([*compiler, "-std=gnu11", "-O2", "-pthread", source, "-o", program], check=True)
        except FileNotFoundError:
            sys.exit(f"{compiler[0]} not found, and {source.name} needs a C compiler; install one or set CC")
        except subprocess.CalledProcessError as error:
            sys.exit(f"{compiler[0]} could not compile {source} (exit code {error.returncode}); set CC to another one")
        runs = []
        for _ in range(LIMIT_RUNS):
            done = subprocess.run([program, "--threads", str(threads)], check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout))
    return _most(runs)


def _most(runs: list[dict[str, Any]]) -> dict[str, Any]:
    most = {key: {name: max(run[key][name] for run in runs) for name in runs[0][key]} for key in LIMIT_KEYS}
    return {**runs[0], **most}


def peak(limit: dict[str, Any], names: tuple[str, ...]) -> tuple[str, float] | tuple[None, None]:
    """The first of ``names`` that was measured, over all its vector widths."""
    for name in names:
        if found := [value for key, value in limit["peak_gops"].items() if key.startswith(name)]:
            return name, max(found)
    return None, None


def _variants(op: str, dtype: str) -> list[str]:
    """The chosen kernel first, then the others that this machine can run; scalar defines the op and is not fast."""
    rows = [row for row in _C.kernels() if row["op"] == op and row["device"] == "cpu" and row["usable"]]
    names = [row["variant"] for row in rows if dtype in row["dtypes"] and row["variant"] != "scalar"]
    chosen = _C.chosen_kernel(op, "cpu", dtype)
    return sorted(names, key=lambda name: name != chosen)


def _packed_weights(k: int, n: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(-1, 2, (n, k), dtype=torch.int8)
    return torch.ops.bittorch.ternary_pack(codes), torch.rand(n) + 0.5


def _make_packed(k: int, n: int, variant: str) -> Bind:
    w_packed, scale = _packed_weights(k, n)
    return lambda x: partial(torch.ops.bittorch.ternary_linear_packed, x, w_packed, scale, None, variant)


def _make_w2a8(k: int, n: int, variant: str, bits: int = 8) -> Bind:
    w_packed, scale = _packed_weights(k, n)
    op = torch.ops.bittorch.ternary_linear_w2a8
    return lambda x: partial(op, x, w_packed, scale, None, None, None, bits, variant)


def ours(k: int, n: int, args: argparse.Namespace) -> Iterator[Candidate]:
    size = k * n / 4 + 4 * n
    for op, make, dtype, x in (
        ("ternary_linear_w2a8", _make_w2a8, "int8", "fp32"),
        ("ternary_linear_packed", _make_packed, "float32", "fp32"),
        ("ternary_linear_packed", _make_packed, "bfloat16", "bf16"),
    ):
        short = "w2a8" if op == "ternary_linear_w2a8" else f"packed {x} x"
        for variant in _variants(op, dtype):
            peaks = (PEAKS[op, variant],) if (op, variant) in PEAKS else ()
            of = torch.bfloat16 if x == "bf16" else torch.float32
            yield Candidate(f"{short} {variant}", partial(make, k, n, variant), size, peaks, of)
            if args.threads > 1 and variant == _C.chosen_kernel(op, "cpu", dtype):
                yield Candidate(f"{short} {variant}{ONE_THREAD}", partial(make, k, n, variant), size, peaks, of, 1)
    for bits in (16, 24):  # no share of a peak: two and three products count as one
        variant = _C.chosen_kernel("ternary_linear_w2a8", "cpu", "int8")
        yield Candidate(f"w2a{bits} {variant}", partial(_make_w2a8, k, n, variant, bits), size, ())
    if (k, n) == (4096, 4096):
        yield Candidate(A8_MODULE, partial(_make_module, k, n), size, INT8_PEAKS)


def _make_module(k: int, n: int) -> Bind:
    layer: Any = timing.ternary_layer(k, n, "cpu", torch.float32, 8)
    return partial(partial, bittorch.export_linear_to_inference(layer).eval())


def _linear(k: int, n: int, dtype: torch.dtype) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, k, n, dtype=dtype).eval()
    for parameter in layer.parameters():
        parameter.uniform_(-0.1, 0.1)
    return layer


def _make_linear(k: int, n: int, dtype: torch.dtype) -> Bind:
    return partial(partial, _linear(k, n, dtype))


def _make_dynamic_int8(k: int, n: int) -> Bind:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this moves to torchao; it is the peer that torch ships
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(_linear(k, n, torch.float32)), {nn.Linear}, torch.qint8
        )
    return partial(partial, model)


def _make_int_mm(k: int, n: int) -> Bind:
    w = torch.randint(-127, 128, (n, k), dtype=torch.int8).t()
    return lambda x: partial(torch._int_mm, (x * 30).clamp(-127, 127).to(torch.int8), w)


def torch_peers(k: int, n: int) -> list[Candidate]:
    return [
        Candidate(FP32, partial(_make_linear, k, n, torch.float32), 4 * k * n, ("fma_fp32",)),
        Candidate(BF16, partial(_make_linear, k, n, torch.bfloat16), 2 * k * n, BF16_PEAKS, torch.bfloat16),
        Candidate(INT8, partial(_make_dynamic_int8, k, n), k * n + 4 * n, INT8_PEAKS),
        Candidate(INT_MM, partial(_make_int_mm, k, n), k * n, INT8_PEAKS),
    ]


class Onnx:
    """Models of one node for onnxruntime; import errors are told as a row, not raised."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        try:
            self.onnx, self.runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
            self.missing = ""
        except ImportError as error:
            self.missing = f"not installed ({error.name}; pip install onnxruntime onnx)"

    def _bind(self, k: int, n: int, op: str, weights: dict[str, Any], **attributes: Any) -> Bind:
        helper, proto = self.onnx.helper, self.onnx.TensorProto
        node = helper.make_node(op, ["x", *weights], ["y"], domain="com.microsoft", **attributes)
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", proto.FLOAT, ["m", k])],
            [helper.make_tensor_value_info("y", proto.FLOAT, ["m", n])],
            [self.onnx.numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        # Its threads would spin on after a call, on the cores of whoever has the next turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = self.runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

        def bind(x: Tensor) -> timing.Call:
            value = self.runtime.OrtValue.ortvalue_from_numpy
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", value(x.numpy()))
            binding.bind_ortvalue_output("y", value(torch.zeros(x.shape[0], n).numpy()))
            return partial(session.run_with_iobinding, binding)

        return bind

    def _make_bits(self, k: int, n: int, bits: int) -> Bind:
        # In 2 bits the trits are 1, 2, 3 about the zero point 2, four per byte; 4 bits hold the same codes, two a byte.
        blocks, each = k // ORT_BLOCK, 8 // bits
        codes = torch.randint(1, 4, (n, blocks, ORT_BLOCK // each, each), dtype=torch.uint8)
        shift = torch.arange(0, 8, bits, dtype=torch.uint8)
        b = torch.bitwise_left_shift(codes, shift).sum(-1, dtype=torch.uint8)
        weights = {"b": b, "scales": torch.rand(n * blocks) + 0.5}
        return self._bind(
            k, n, "MatMulNBits", weights, K=k, N=n, bits=bits, block_size=ORT_BLOCK, accuracy_level=4
        )  # level 4: int8 activations, its fastest

    def _make_dynamic_int8(self, k: int, n: int) -> Bind:
        b = torch.randint(-127, 128, (k, n), dtype=torch.int8)
        return self._bind(k, n, "DynamicQuantizeMatMul", {"b": b, "b_scale": torch.tensor(0.01)})

    def peers(self, k: int, n: int) -> list[Candidate]:
        scales = 4 * n * k / ORT_BLOCK
        return [
            Candidate(ORT2, partial(self._make_bits, k, n, 2), k * n / 4 + scales, INT8_PEAKS),
            Candidate(ORT4, partial(self._make_bits, k, n, 4), k * n / 2 + scales, INT8_PEAKS),
            Candidate(ORT8, partial(self._make_dynamic_int8, k, n), k * n, INT8_PEAKS),
        ]


@dataclass
class Bench:
    """What all cases of a run share."""

    args: argparse.Namespace
    limit: dict[str, Any]
    onnx: Onnx
    evictor: Tensor

    def candidates(self, k: int, n: int) -> tuple[list[Candidate], dict[str, str]]:
        """Those that run here, and why the others do not."""
        found = [*ours(k, n, self.args), *torch_peers(k, n)]
        missing = {}
        for candidate in self.onnx.peers(k, n):
            if self.onnx.missing:
                missing[candidate.name] = self.onnx.missing
            else:
                found.append(candidate)
        return found, missing


def _bound(candidate: Candidate, layers: list[Bind], x: Tensor, missing: dict[str, str]) -> list[timing.Call]:
    """A call for each copy of the weights; none if the first fails, and then the reason is in ``missing``."""
    calls = [layer(x.to(candidate.dtype)) for layer in layers]
    try:
        calls[0]()
    except (RuntimeError, ValueError) as error:
        missing[candidate.name] = f"does not take it: {str(error).splitlines()[0][:100]}"
        return []
    return calls


def _takes(call: timing.Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _once_each(calls: list[timing.Call]) -> None:
    for call in calls:
        call()


def _seconds(bench: Bench, calls: dict[str, list[timing.Call]], threads: dict[str, int], mode: str) -> dict[str, Any]:
    """Times of one call. A cold turn calls each copy of the weights but the last once, all evicted by a large read."""

    long = {name: _takes(copies[0]) > LONG_CALL for name, copies in calls.items()}

    def before(name: str) -> None:
        if mode == "cold":
            torch.set_num_threads(bench.args.threads)
            bench.evictor.sum()
            torch.set_num_threads(threads[name])
            calls[name][-1]()  # x, y, code and page tables are warm, as after the layer before
        else:
            torch.set_num_threads(threads[name])
            if not long[name]:
                calls[name][0]()  # the peers had their turns in between: bring the weights back

    if mode == "cold":
        turns: dict[str, timing.Call] = {name: partial(_once_each, copies[:-1]) for name, copies in calls.items()}
    else:
        turns = {name: copies[0] for name, copies in calls.items()}
    times = timing.interleaved(turns, bench.args, before, once_a_turn=mode == "cold", least=5)
    torch.set_num_threads(bench.args.threads)
    for name, row in times.items():
        copies = len(calls[name]) - 1 if mode == "cold" else 1
        times[name] = {key: value / copies if key.endswith("_s") else value for key, value in row.items()}
        times[name]["copies"] = copies
    return times


def _row(bench: Bench, case: dict[str, Any], candidate: Candidate, taken: dict[str, float]) -> dict[str, Any]:
    row = {
        **case,
        "name": candidate.name,
        **taken,
        "threads": candidate.threads or bench.args.threads,
        "weight_bytes": candidate.weight_bytes,
        "gops": 2e-9 * case["m"] * case["k"] * case["n"] / taken["median_s"],
        "weight_gbps": 1e-9 * candidate.weight_bytes / taken["median_s"],
        "peak": peak(bench.limit, candidate.peaks)[0],
    }
    _add_shares(row, bench.limit)
    return row


def _add_shares(row: dict[str, Any], limit: dict[str, Any]) -> None:
    most = peak(limit, (row["peak"],))[1] if row["peak"] else None
    row["of_peak"] = row["gops"] / (most * row["threads"] / limit["threads"]) if most else None
    row["of_bandwidth"] = row["weight_gbps"] / limit["read_gbps"]["cold"] if row["mode"] == "cold" else None


def _print_rows(rows: list[dict[str, Any]], missing: dict[str, str], say: Callable[[str], None]) -> None:
    case = rows[0]
    cold = case["mode"] == "cold" and case["m"] == 1
    title = "of bandwidth" if cold else "of peak"
    say(
        f"\n({case['m']}, {case['k']} -> {case['n']}) {case['mode']:31}{'median':>12}{'Gop/s':>9}{'GB/s':>8}{title:>14}"
    )
    for row in rows:
        share = row["of_bandwidth"] if cold else row["of_peak"]
        text = f"{100 * share:.0f} %" if share else "-"
        of = "" if cold or not row["peak"] else f" {row['peak']}"
        text_of_time = timing.time_text(row["median_s"])
        say(f"  {row['name']:44}{text_of_time:>12}{row['gops']:9.1f}{row['weight_gbps']:8.1f}{text:>14}{of}")
    for name, why in missing.items():
        say(f"  {name:44}{why}")


def measure(bench: Bench, k: int, n: int, done: Callable[[], None], say: Callable[[str], None]) -> Iterator[Any]:
    """The rows of one shape, and (case, name, reason) of what could not be measured."""
    found, missing = bench.candidates(k, n)
    cold = "cold" in bench.args.modes
    layers: dict[str, list[Bind]] = {}
    for candidate in found:
        llc = bench.limit["cache_bytes"]["l3"]
        copies = 1 + max(1, min(COPIES, math.ceil(2 * llc / candidate.weight_bytes))) if cold else 1
        try:
            layers[candidate.name] = [candidate.make() for _ in range(copies)]
        except Exception as error:  # an older onnxruntime has no 2 bits, and an error class of its own for that
            missing[candidate.name] = f"cannot be made: {str(error).splitlines()[0][:100]}"
    found = [candidate for candidate in found if candidate.name in layers]
    threads = {candidate.name: candidate.threads or bench.args.threads for candidate in found}
    for m in bench.args.batches:
        x = torch.randn(m, k)
        for mode in bench.args.modes:
            if mode == "cold" and m not in COLD_BATCHES:
                continue
            case, absent = {"m": m, "k": k, "n": n, "mode": mode}, dict(missing)
            bound = {c.name: _bound(c, layers[c.name], x, absent) for c in found}
            calls = {name: copies for name, copies in bound.items() if copies}
            times = _seconds(bench, calls, threads, mode)
            rows = [_row(bench, case, c, times[c.name]) for c in found if c.name in times]
            _print_rows(rows, absent, say)
            yield from rows
            yield from ({**case, "name": name, "missing": why} for name, why in absent.items())
            done()


# The shapes of a language model's layers, as the goals are told for; the smaller ones measure calls, not kernels.
GOAL_SHAPES = [(2560, 2560), (6912, 2560), (2560, 6912), (4096, 4096)]
Rows = dict[tuple[int, int, int, str, str], dict[str, Any]]


class Goals:
    """Prints what is wanted beside the worst of what was measured."""

    def __init__(self, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
        self.rows: Rows = {(r["m"], r["k"], r["n"], r["mode"], r["name"]): r for r in rows if "median_s" in r}
        shapes = [shape for shape in GOAL_SHAPES if shape in args.shapes]
        self.shapes, self.batches = shapes or list(args.shapes), args.batches
        self.found: list[dict[str, Any]] = []

    def want(
        self,
        what: str,
        wanted: float,
        value: Callable[[Callable[[str], dict[str, Any]]], float],
        batches: Callable[[int], bool],
        mode: str = "hot",
        shapes: list[tuple[int, int]] | None = None,
    ) -> None:
        """``value(row)``, row giving a candidate's row by its name, over all cases; skipped where one is missing."""
        values = {}
        for m in filter(batches, self.batches):
            for k, n in shapes or self.shapes:
                with contextlib.suppress(KeyError, TypeError):
                    values[m, k, n] = value(lambda name, m=m, k=k, n=n: self.rows[m, k, n, mode, name])
        if not values:
            print(f"----  {what}: not measured (wanted >= {wanted:g})")
            return
        worst = min(values, key=lambda case: values[case])
        text = f"{what}, {mode}, worst at ({worst[0]}, {worst[1]} -> {worst[2]})"
        self.found.append(timing.verdict(text, values[worst], wanted))


def _one(m: int) -> bool:
    return m == 1


def _eight(m: int) -> bool:
    return m >= 8


def _many(m: int) -> bool:
    return m >= 32


def _any(m: int) -> bool:
    return True


def verdicts(rows: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """What the project wants of a machine with AVX-512 VNNI, beside what was measured; other machines only compare."""
    goals = Goals(rows, args)
    a8 = f"w2a8 {_variants('ternary_linear_w2a8', 'int8')[0]}"
    fp32 = f"packed fp32 x {_variants('ternary_linear_packed', 'float32')[0]}"
    bf16 = f"packed bf16 x {_variants('ternary_linear_packed', 'bfloat16')[0]}"

    def over(peer: str, name: str) -> Callable[[Callable[[str], dict[str, Any]]], float]:
        return lambda row: row(peer)["median_s"] / row(name)["median_s"]

    print()
    if args.threads > 1:
        for name in (a8, fp32, bf16):
            what = f"{name}, {args.threads} threads over one"
            goals.want(what, 0.9 * args.threads, over(name + ONE_THREAD, name), _any)
        return goals.found
    goals.want(f"{a8}, batch 1, of the peak", 0.55, lambda row: row(a8)["of_peak"], _one)
    goals.want(f"{a8}, batch 1, of the bandwidth", 0.9, lambda row: row(a8)["of_bandwidth"], _one, "cold")
    goals.want(f"{a8}, batch >= 8, of the peak", 0.8, lambda row: row(a8)["of_peak"], _eight)
    if a8 != "w2a8 avx2":
        goals.want("w2a8 avx2, batch 1, of the peak", 0.5, lambda row: row("w2a8 avx2")["of_peak"], _one)
        goals.want("w2a8 avx2, batch >= 8, of the peak", 0.75, lambda row: row("w2a8 avx2")["of_peak"], _eight)
    for peer in (INT8, ORT8):
        goals.want(f"{a8}, batch 1, speed over {peer}", 2, over(peer, a8), _one)
        goals.want(f"{a8}, batch >= 8, speed over {peer}", 1, over(peer, a8), _eight)
    goals.want(f"{a8}, batch 1, speed over {ORT2}", 1.6, over(ORT2, a8), _one)
    goals.want(f"{a8}, every batch, speed over {ORT2}", 1.6, over(ORT2, a8), _any)
    square = [(4096, 4096)]
    goals.want(f"{fp32}, batch 1, speed over {FP32}", 6, over(FP32, fp32), _one, shapes=square)
    goals.want(f"{fp32}, batch >= 32, speed over {FP32}", 1, over(FP32, fp32), _many)
    goals.want(f"{bf16}, batch 1, speed over {BF16}", 10, over(BF16, bf16), _one, shapes=square)
    goals.want(f"{bf16}, batch >= 32, speed over {BF16}", 0.9, over(BF16, bf16), _many)
    goals.want(f"{A8_MODULE}, batch 1, speed over {FP32}", 20, over(FP32, A8_MODULE), _one, shapes=square)
    for bits, one, more in ((16, 2, 1.8), (24, 1.5, 1.3)):
        digits = f"w2a{bits} {a8.split()[1]}"
        goals.want(f"{digits}, batch 1, speed over {fp32}", one, over(fp32, digits), _one, shapes=[(2560, 2560)])
        goals.want(f"{digits}, batch >= 8, speed over {fp32}", more, over(fp32, digits), _eight, shapes=[(2560, 2560)])
    return goals.found


def _shape(text: str) -> tuple[int, int]:
    k, _, n = text.partition("x")
    if not (k.isdigit() and n.isdigit() and int(k) % ORT_BLOCK == 0 and int(k) and int(n)):
        raise argparse.ArgumentTypeError(f"wants KxN such as 2560x6912, K a multiple of {ORT_BLOCK}, got {text!r}")
    return int(k), int(n)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", type=_shape, nargs="+", help="KxN (in x out features); default: ten")
    parser.add_argument("--batches", type=int, nargs="+", help=f"default: {' '.join(map(str, BATCHES))}")
    parser.add_argument("--modes", choices=("hot", "cold"), nargs="+", default=["hot", "cold"], help="default: both")


def parse_args() -> argparse.Namespace:
    args = timing.parse_args(__doc__ or "", _options)
    if args.device != "cpu":
        sys.exit("bench_cpu_kernels.py measures CPU kernels; leave --device away")
    part = args.quick or args.shapes or args.batches or len(args.modes) < 2
    args.quick_or_part = bool(part)
    args.shapes = args.shapes or (QUICK_SHAPES if args.quick else SHAPES)
    args.batches = args.batches or (QUICK_BATCHES if args.quick else BATCHES)
    return args


def progress(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[str], None]]:
    """What to call after each case, and how to print: with a bar on stderr where tqdm is installed."""
    hot = len(args.shapes) * len(args.batches) if "hot" in args.modes else 0
    cold = len(args.shapes) * len(set(args.batches) & set(COLD_BATCHES)) if "cold" in args.modes else 0
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return lambda: None, print
    bar = tqdm(total=hot + cold, desc="cases", file=sys.stderr, disable=None)
    return bar.update, partial(tqdm.write, file=sys.stdout)


def _limit_line(limit: dict[str, Any]) -> str:
    figures = {**limit["peak_gops"], **{f"read {level} GB/s": value for level, value in limit["read_gbps"].items()}}
    return "limits: " + ", ".join(f"{name} {value:.0f}" for name, value in figures.items())


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    machine = timing.machine(args)
    machine["command"] = shlex.join(["python", f"benchmark/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    limit = limits(args.threads)
    onnx = Onnx(args.threads)
    machine["onnxruntime"] = None if onnx.missing else onnx.runtime.__version__
    print(timing.header(machine))
    print(_limit_line(limit))
    if onnx.missing:
        print(f"onnxruntime: {onnx.missing}")
    torch.manual_seed(0)
    evictor = torch.zeros(3 * limit["cache_bytes"]["l3"] // 8, dtype=torch.int64)
    bench = Bench(args, limit, onnx, evictor)
    done, say = progress(args)
    rows: list[dict[str, Any]] = []
    for k, n in args.shapes:
        rows += measure(bench, k, n, done, say)
        gc.collect()  # the layers of a shape are some hundred megabytes
    bench.limit = limit = _most([limit, limits(args.threads)])
    for row in rows:
        if "median_s" in row:
            _add_shares(row, limit)
    say(f"\n{_limit_line(limit)}, the most of before and after: shares from here on are of these")
    found = verdicts(rows, args)
    over = {row["peak"] for row in rows if (row.get("of_peak") or 0) > 1}
    if over:
        print(f"measured too low, because some row passed it: {', '.join(sorted(over))}; run again on a quiet machine")
    record = {"machine": machine, "limits": limit, "rows": rows, "wanted": found}
    if args.quick_or_part and not args.json:
        print("a part of the cases: no result file; give --json FILE to keep the figures")
        return
    timing.save(args, "cpu_kernels", record)


if __name__ == "__main__":
    main()
