"""What this installation is, what it runs, and whether it computes what it should: `bittorch doctor`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bittorch import _C, _build_info, _env, _extension, _optional, ops
from bittorch._version import __version__
from bittorch.ops import reference

DTYPES = ("float32", "float16", "bfloat16", "int8")
COLUMNS = 320  # every kernel takes rows of 80 bytes, and none of them has whole blocks only


def _describe() -> Iterator[str]:
    yield f"bittorch   {__version__}, {_extension.describe_shims()}"
    yield f"torch      {torch.__version__} running, {torch.get_num_threads()} threads"
    yield f"cpu        {platform.machine()}: {' '.join(_C.cpu_features()) or 'no vector unit that bittorch uses'}"
    yield f"cuda       {_describe_cuda()}"
    yield "kernels"
    for op in dict.fromkeys(row["op"] for row in _C.kernels()):
        for device in ("cpu", "cuda"):
            if chosen := _chosen(op, device):
                yield f"  {op:22} {device:5} {chosen}"
        if torch.cuda.is_available() and (few := _chosen(op, "cuda", 1, 4096, 4096, _sm())) != _chosen(op, "cuda"):
            yield f"  {op:22} cuda  {few} for one token"
    yield from _describe_missing()


def _describe_missing() -> Iterator[str]:
    """The optional tools and extras that are not here, and what each is for; those of the tests in a checkout alone."""
    tools: tuple[_optional.Tool, ...] = _optional.USER_TOOLS
    if (Path(__file__).resolve().parent.parent / "tests" / "run_stages.py").exists():
        tools += _optional.TEST_TOOLS
    lines = [
        f"  {f'bittorch[{extra.name}]':22} for {extra.purpose}; without {', '.join(lacking)}"
        for extra in _optional.EXTRAS
        if (lacking := _optional.missing_modules(extra))
    ]
    lines += [
        f"  {tool.name:22} for {tool.purpose}; Debian package {tool.package}"
        for tool in _optional.missing_tools(tools, *_env.build_tools())
    ]
    yield "optional, not installed" if lines else "optional   all tools and extras are installed"
    yield from lines


def _sm() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _why_no_device() -> str:
    """What a user with CUDA kernels has to mend; without them nobody asks."""
    if not _build_info.CUDA_ARCHES:
        return ""
    if torch.version.cuda is None:
        return f": torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f": torch says {str(error).splitlines()[0]}"
    return ""


def _describe_cuda() -> str:
    built = f"kernels for {_build_info.CUDA_ARCHES}" if _build_info.CUDA_ARCHES else "no kernels in this build"
    if not torch.cuda.is_available():
        return f"{built}; no device{_why_no_device()}"
    names = [
        f"{torch.cuda.get_device_name(i)} (sm_{''.join(map(str, torch.cuda.get_device_capability(i)))})"
        for i in range(torch.cuda.device_count())
    ]
    return f"{built}; {', '.join(names)}"


def _chosen(op: str, device: str, *problem: int) -> str:
    """The automatic choice by dtype, dtypes with the same choice together; for any problem, or m, n, k and sm."""
    by_variant: dict[str, list[str]] = {}
    for dtype in DTYPES:
        if variant := _C.chosen_kernel(op, device, dtype, None, *problem):
            by_variant.setdefault(variant, []).append(dtype)
    return "   ".join(f"{variant} ({', '.join(dtypes)})" for variant, dtypes in by_variant.items())


def _variants(op: str, device: str) -> list[tuple[str, list[str]]]:
    """The usable kernels with their dtypes."""
    rows = [row for row in _C.kernels() if row["op"] == op and row["device"] == device and row["usable"]]
    return [(row["variant"], row["dtypes"]) for row in rows]


def _weights(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Master weights of an odd shape, their codes and scales by the reference."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(37, COLUMNS, generator=generator).to(device)
    return w, *reference.ternary_quantize(w, "max", "ls", 0.05, "channel")


def _check_storage(device: str) -> bool:
    w, w_packed, scale = _weights(device)
    codes = reference.ternary_unpack(w_packed, None, COLUMNS, torch.int8)
    packed, scales = ops.ternary_quantize(w, "max", "ls", 0.05, "channel")
    return (
        torch.equal(ops.ternary_pack(codes), w_packed)
        and torch.equal(ops.ternary_unpack(w_packed, None, COLUMNS, torch.int8), codes)
        and torch.equal(ops.ternary_transpose(w_packed, COLUMNS), reference.ternary_transpose(w_packed, COLUMNS))
        and bool((ops.ternary_check(w_packed, COLUMNS) == -1).all())
        and torch.equal(packed, w_packed)
        and torch.allclose(scales, scale, rtol=1e-6)
    )


def _check_blocks(device: str) -> bool:
    """Weights and trits bit for bit, products but for the order of sums; halves of these bytes are finite."""
    blocks = torch.randint(0, 60, (7, 420), generator=torch.Generator().manual_seed(2), dtype=torch.uint8).to(device)
    x = torch.ones(5, 512, device=device)
    unpacked = [own.block_unpack(blocks, "Q6_K", 512, torch.float32) for own in (ops, reference)]
    y, expected = (own.block_linear(x, blocks, "Q6_K") for own in (ops, reference))
    trits = [own.ternary_from_base3(blocks[:, :216], 1024, "tq1_0") for own in (ops, reference)]
    fields = [torch.empty(7, 384, dtype=torch.uint8) for _ in range(2)]
    for own, out in zip((ops, reference), fields, strict=True):
        own.ternary_from_fields(blocks[:, :396], 1536, "tq2_0", out)
    same_bits = torch.equal(*unpacked) and torch.equal(*trits) and torch.equal(*fields)
    return same_bits and bool((y - expected).abs().max() <= 1e-4 * expected.abs().max())


def _check_trits(device: str) -> bool:
    """Functions, counts and products of trits, which have the same bits on every device."""
    a, same = _weights(device)[1], True
    for function in ("add", "mul", "le"):
        y, expected = (own.trit_elementwise(a, a[:1], function, COLUMNS) for own in (ops, reference))
        same = same and torch.equal(y, expected)
    counts, products = (
        (own.trit_reduce(a, a[:1], COLUMNS), own.bitplane_matmul(a, a, COLUMNS)) for own in (ops, reference)
    )
    return same and all(map(torch.equal, counts, products))


def _check_bytes(device: str) -> bool:
    w = torch.randint(-128, 128, (37, 200), generator=torch.Generator().manual_seed(3), dtype=torch.int8).to(device)
    x, scale = torch.linspace(-1, 1, 1000).view(5, 200).to(device), torch.linspace(0.5, 1, 37).to(device)
    y, expected = (own.half_linear(x, w.half()) for own in (ops, reference))
    exact = torch.equal(ops.linear_i8(x, w, scale), reference.linear_i8(x, w, scale))
    return exact and bool((y - expected).abs().max() <= 1e-5 * expected.abs().max())


def _check_depth(device: str) -> bool:
    _, w_packed, scale = _weights(device)
    x, planes = _activations(device), w_packed.repeat(3, 1)
    return torch.equal(*(own.trit_depth_linear(x, planes, scale, depth=3) for own in (ops, reference)))


def _activations(device: str) -> Tensor:
    return torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(1)).to(device)


def _check_act_quantize(device: str) -> bool:
    x = _activations(device)
    return all(torch.equal(a, b) for a, b in zip(ops.act_quantize(x), reference.act_quantize(x), strict=True))


def _check_rows(device: str) -> bool:
    """Rows of an embedding and rotated blocks, which have the same bits on every device."""
    _, w_packed, scale = _weights(device)
    x, rows = _activations(device), (torch.tensor([1, 0, 36], device=device), w_packed, scale, COLUMNS, torch.float32)
    same_rows = torch.equal(ops.ternary_embedding(*rows), reference.ternary_embedding(*rows))
    return same_rows and torch.equal(ops.hadamard(x, 64), reference.hadamard(x, 64))


def _check_attention(device: str) -> bool:
    """Two sequences over several splits of a cache in halves, near the reference."""
    generator = torch.Generator().manual_seed(3)
    kv = torch.randn(2, 2, 2, 600, 32, generator=generator).to(device, torch.bfloat16)
    q = torch.randn(3, 6, 32, generator=generator).to(device)
    arguments = q, kv, [600, 9], [1, 0], [1, 2], 300
    return torch.allclose(
        ops.decode_attention(*arguments), reference.decode_attention(*arguments), rtol=1e-4, atol=1e-4
    )


def _check_rotation(device: str) -> bool:
    """Heads that are turned, and what a cache of halves then holds."""
    generator = torch.Generator().manual_seed(4)
    heads, cos, sin = (torch.randn(2, *size, generator=generator).to(device) for size in ((5, 32), (32,), (32,)))
    kv = torch.zeros(2, 1, 1, 3, 32, dtype=torch.bfloat16, device=device)
    own, expected = (heads.clone(), kv.clone()), (heads.clone(), kv.clone())
    ops.rotary_store(*own, cos, sin, [3], None, [2])
    reference.rotary_store(*expected, cos, sin, [3], None, [2])
    return all(torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-2) for a, b in zip(own, expected, strict=True))


def _check_packed(device: str, variant: str, dtypes: list[str]) -> bool:
    """In float32, or in bfloat16 where the kernel takes that alone."""
    _, w_packed, scale = _weights(device)
    dtype, tolerance = (torch.float32, 1e-4) if "float32" in dtypes else (torch.bfloat16, 1e-2)
    x = _activations(device).to(dtype)
    y = ops.ternary_linear_packed(x, w_packed, scale, variant=variant)
    expected = reference.ternary_linear_packed(x.float(), w_packed, scale)
    return torch.allclose(y.float(), expected, rtol=tolerance, atol=tolerance)


def _check_w2a8(device: str, variant: str) -> bool:
    _, w_packed, scale = _weights(device)
    x = _activations(device)
    y = ops.ternary_linear_w2a8(x, w_packed, scale, variant=variant)
    return torch.equal(y, reference.ternary_linear_w2a8(x, w_packed, scale))


def _check_conv2d(device: str, variant: str, dtypes: list[str]) -> bool:
    """With floating activations near the reference, and with int8 ones equal to it, as far as the kernel takes both."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 9, 9, generator=generator).to(device)
    w_packed = ops.ternary_pack(torch.randint(-1, 2, (6, 72), generator=generator, dtype=torch.int8)).to(device)
    arguments = x, w_packed, torch.rand(6, generator=generator).to(device), None, (3, 3), (2, 1), (1, 0)
    right = True
    for bits in [0] * ("float32" in dtypes) + [8] * ("int8" in dtypes):
        y = ops.ternary_conv2d_packed(*arguments, activation_bits=bits, variant=variant)
        expected = reference.ternary_conv2d_packed(*arguments, activation_bits=bits)
        right = right and (torch.equal(y, expected) if bits else torch.allclose(y, expected, rtol=1e-4, atol=1e-4))
    return right


def _checks(device: str) -> Iterator[tuple[str, Callable[[], bool]]]:
    yield "storage and quantiser", lambda: _check_storage(device)
    yield "activation quantiser", lambda: _check_act_quantize(device)
    yield "embedding and Hadamard blocks", lambda: _check_rows(device)
    yield "functions of trits", lambda: _check_trits(device)
    if _variants("block_linear", device):
        yield "blocks of files", lambda: _check_blocks(device)
        yield "rows of bytes and of halves", lambda: _check_bytes(device)
        yield "trit planes in one product", lambda: _check_depth(device)
    if _variants("rotary_store", device):
        yield "rotation into a cache", lambda: _check_rotation(device)
    yield "attention to a cache", lambda: _check_attention(device)
    for variant, dtypes in _variants("ternary_linear_packed", device):
        yield (
            f"ternary_linear_packed {variant}",
            lambda v=variant, d=dtypes: _check_packed(device, v, d),  # type: ignore[misc]
        )
    for variant, _ in _variants("ternary_linear_w2a8", device):
        yield f"ternary_linear_w2a8 {variant}", lambda v=variant: _check_w2a8(device, v)  # type: ignore[misc]
    unfolded = [("unfold", ["float32", "int8"])]  # no kernel: torch's patches and the linear products
    for variant, dtypes in _variants("ternary_conv2d_packed", device) or unfolded:
        yield (
            f"ternary_conv2d_packed {variant}",
            lambda v=variant, d=dtypes: _check_conv2d(device, v, d),  # type: ignore[misc]
        )


def _outcome(check: Callable[[], bool]) -> str:
    """An empty string, or what is wrong: a doctor reports every failure, whatever its kind."""
    try:
        return "" if check() else "differs from the reference"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def description() -> list[str]:
    """What this installation is and which kernels it chooses, in lines for people."""
    return list(_describe())


def self_test() -> Iterator[tuple[str, str, str]]:
    """Runs every kernel that this machine can run.

    Returns:
        Device, name of the check, and what is wrong: empty when it computes what the reference computes.
    """
    for device in ["cpu", "cuda"] if torch.cuda.is_available() and _build_info.CUDA_ARCHES else ["cpu"]:
        for name, check in _checks(device):
            yield device, name, _outcome(check)


def run() -> int:
    """Prints the report; returns 1 when a kernel computes something else than the reference, else 0."""
    for line in _describe():
        print(line)
    failed = 0
    print("self-test")
    for device, name, problem in self_test():
        failed += bool(problem)
        print(f"  {device:5} {name:36} {problem or 'ok'}")
    if torch.cuda.is_available() and not _build_info.CUDA_ARCHES:
        print("a CUDA device is here, but no kernels for it: rebuild beside nvcc with BITTORCH_CUDA=1 to use it")
    print(f"{failed} of the checks failed; please report this output" if failed else "all well")
    return 1 if failed else 0
