"""The house rules that a machine can check: who may import and include whom."""

import ast
import re
from pathlib import Path

import pytest

import bittorch
from bittorch.models import architectures
from tests import helpers

PACKAGE = Path(bittorch.__file__).parent
ROOT = PACKAGE.parent
CSRC = ROOT / "csrc"
# A file imports only from its own floor and those before it.
BASE = ("_C", "_env", "_version", "_extension", "_build_info", "_build_shim", "_startup", "_optional")
FLOORS = (BASE, ("ops",), ("quant",), ("nn",), ("utils", "train"), ("array",), ("vsa",), ("models",))
TOP = len(FLOORS)
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
C_FILES = sorted(p for suffix in ("c", "h", "cpp", "cu", "cuh") for p in CSRC.rglob(f"*.{suffix}"))
KERNEL_FILES = [path for path in C_FILES if "kernels" in path.relative_to(CSRC).parts]

needs_sources = pytest.mark.skipif(not CSRC.is_dir(), reason="an installed package has no C sources")


def _floor(name: str) -> int:
    """The floor of a module name below bittorch; doctor, __main__ and the package itself are on top."""
    return next((i for i, names in enumerate(FLOORS) if name in names), TOP)


def _imported(path: Path) -> set[str]:
    """First names below bittorch that a file imports, at any depth of it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            base = (node.module or "").split(".")
            parts = [base] if len(base) > 1 else [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {names[1] for names in parts if names[0] == "bittorch" and len(names) > 1}
    return found


@helpers.each("path", MODULES, ids=str)
def test_imports_go_only_downward(path: Path) -> None:
    own = _floor(path.parts[0].removesuffix(".py"))
    too_high = {name for name in _imported(path) if _floor(name) > own}
    assert not too_high


def test_the_import_rule_sees_imports() -> None:
    assert {"_extension", "ops", "quant"} <= _imported(Path("nn/ternary_layer.py"))
    assert _floor("utils") > _floor("nn") > _floor("quant") > _floor("ops") > _floor("_C")
    assert _floor("doctor") == _floor("cli") == TOP > _floor("models")


def _name(path: Path) -> str:
    """The module of a file: a package is its __init__."""
    return ".".join(("bittorch", *path.with_suffix("").parts)).removesuffix(".__init__")


FILES = {_name(path): path for path in MODULES}


def _edges(path: Path) -> set[str]:
    """The modules that a file imports: at its top, in functions, for type checkers, and lazily by a REGISTER.

    Importing a name of a package counts as importing the package's __init__; that of a submodule counts as that alone.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names} - {"bittorch._C"}
            found |= {name if name in FILES else str(node.module) for name in names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REGISTER":
            found |= {f"{_name(path.parent / '__init__.py')}.{name}" for name in ast.literal_eval(node.value)}
    return found & FILES.keys() - {_name(path)}


def _circles(edges: dict[str, set[str]]) -> list[str]:
    """What is left when modules that import nothing of the rest are taken away again and again."""
    left = dict(edges)
    while done := {name for name, imported in left.items() if not imported & left.keys()}:
        left = {name: imported for name, imported in left.items() if name not in done}
    while idle := {name for name in left if not any(name in imported for imported in left.values())}:
        left = {name: imported for name, imported in left.items() if name not in idle}
    return sorted(left)


def test_no_file_imports_itself_through_others() -> None:
    edges = {name: _edges(path) for name, path in FILES.items()}
    assert _circles(edges) == []
    assert "bittorch.models.architectures.llama" in edges["bittorch.models.architectures"]
    assert "bittorch.models.io.own" in edges["bittorch.models.io.formats"]
    back = edges | {"bittorch.models.engine": edges["bittorch.models.engine"] | {"bittorch.models.generate"}}
    assert _circles(back) == [f"bittorch.models.{name}" for name in ("continuation", "engine", "generate")]


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "models" / "architectures").glob("*.py")), ids=lambda path: path.name
)
def test_an_architecture_is_a_small_file_of_the_register(path: Path) -> None:
    if path.stem not in ("__init__", "base"):
        assert len(path.read_text().splitlines()) <= 120
        assert architectures.find(path.stem).name == path.stem


@helpers.each("path", MODULES, ids=str)
def test_only_env_reads_the_environment(path: Path) -> None:
    text = (PACKAGE / path).read_text()
    assert path == Path("_env.py") or not re.search(r"os\.environ|getenv", text)


@needs_sources
def test_python_above_the_ops_knows_no_kernel_names() -> None:
    variants = {row["variant"] for row in bittorch._C.kernels()} | {"avx2", "avx512", "neon"}
    for path in MODULES:
        if _floor(path.parts[0].removesuffix(".py")) in (1, 2, 3, 4):
            code = ast.parse((PACKAGE / path).read_text())
            strings = {n.value for n in ast.walk(code) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not strings & variants, path


@needs_sources
@helpers.each("path", KERNEL_FILES, ids=lambda path: path.name)
def test_kernels_include_neither_torch_nor_python(path: Path) -> None:
    included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
    assert not [name for name in included if re.match(r"torch|ATen|c10|Python\.h|pybind", name)]
    assert not [name for name in included if "dispatch" in name]


@needs_sources
@helpers.each("path", KERNEL_FILES, ids=lambda path: path.name)
def test_kernels_neither_allocate_nor_print(path: Path) -> None:
    if path.suffix in (".c", ".h"):
        assert not re.search(r"\b(malloc|calloc|realloc|free|printf|fprintf|puts)\s*\(", path.read_text())


@needs_sources
@helpers.each("path", C_FILES, ids=lambda path: path.name)
def test_c_never_reads_the_environment(path: Path) -> None:
    assert not re.search(r"\bgetenv\b", re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S))


@needs_sources
def test_each_op_stands_in_every_layer() -> None:
    ops = {row["op"] for row in bittorch._C.kernels()}
    schemas = set(re.findall(r'm\.def\("(\w+)\(', (CSRC / "dispatch" / "library.cpp").read_text()))
    assert ops <= schemas
    for op in ops:
        for path in (
            CSRC / "kernels" / "cpu" / f"{op}_scalar.c",
            CSRC / "dispatch" / f"{op}.cpp",
            PACKAGE / "ops" / f"{op}.py",
            ROOT / "tests" / "ops" / f"test_{op}.py",
        ):
            assert path.is_file(), path
        assert hasattr(bittorch.ops, op)
        assert hasattr(bittorch.ops.reference, op)
