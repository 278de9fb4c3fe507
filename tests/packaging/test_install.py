"""The package as others get it: wheel, sdist and `pip install .`, each in an environment of its own. FIELD N1, N10

Objects that `make build` left are used again, so that these tests need a compiler for the rest alone. The environments
see torch and the other requirements of this one through a .pth file; pip asks no index.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest
import torch

from bittorch import _C, _build_info, _extension, _optional
from bittorch._version import __version__
from tests.packaging.common import INSTALL, PIP, ROOT, attempt, checkout, run, same_build, take_objects

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="an installed package has no setup.py"),
]
CHECK = """
import sys, torch, bittorch
assert bittorch.__file__.startswith(sys.prefix), bittorch.__file__
model = torch.nn.Sequential(bittorch.TernaryLinear(64, 8)).eval()
x = torch.randn(3, 64)
assert torch.equal(model(x), bittorch.export_for_inference(model)(x))
"""


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def _assert_installed(python: Path) -> None:
    """It works from a folder that holds nothing, as library and as command; pip finds its requirements met."""
    folder = python.parent.parent / "nothing"
    folder.mkdir()
    run(python, "-W", "error", "-c", CHECK, cwd=folder)
    report = run(python.parent / "bittorch", "doctor", cwd=folder)
    assert report.startswith(f"bittorch   {__version__}, ")
    assert report.rstrip().endswith("all well")
    assert "simde" not in report  # tools of the tests are for a checkout
    assert "bittorch" not in subprocess.run([python, *PIP, "check"], capture_output=True, text=True, cwd=folder).stdout
    assert not list(folder.iterdir())


def test_a_wheel_of_the_sdist_installs_into_an_empty_environment(wheel: Path, empty: Path) -> None:  # FIELD N1
    run(empty, *PIP, *INSTALL, wheel, cwd=wheel.parent)
    _assert_installed(empty)


# A compiler that takes the objects which are there: pip unpacks an archive where setup.py finds none.
COPYING = """#!{python}
import pathlib, shutil, subprocess, sys
target = pathlib.Path(sys.argv[sys.argv.index("-o") + 1]) if "-o" in sys.argv else None
objects = pathlib.Path({objects!r})
known = [objects / target.name, objects / target.parent.name / target.name] if target else []  # of kernels, of a shim
found = next((path for path in known if path.exists()), None)
if found:
    shutil.copyfile(found, target)
else:
    sys.exit(subprocess.run([{compiler!r}, *sys.argv[1:]]).returncode)
"""


def _copying(path: Path, compiler: str, objects: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(COPYING.format(python=sys.executable, objects=str(objects), compiler=compiler))
    path.chmod(0o755)
    return path


def _copying_compilers(folder: Path, objects: Path) -> dict[str, str]:
    found = {name: str(_copying(folder / name, name, objects)) for name in ("cc", "c++")}
    variables = {"CC": found["cc"], "CXX": found["c++"], **same_build()}
    if _build_info.CUDA_ARCHES:
        nvcc = str(_optional.nvcc(os.environ.get("CUDA_HOME", "")))
        dryrun = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        real = Path(re.findall(r"^#\$ TOP=(.+)$", dryrun, re.M)[0])
        for path in real.iterdir():
            if path.name != "bin":
                (folder / path.name).symlink_to(path)
        _copying(folder / "bin" / "nvcc", nvcc, objects)
        variables["CUDA_HOME"] = str(folder)
    return variables


def test_the_sdist_installs_into_an_empty_environment(sdist: Path, unpacked: Path, wheel: Path, empty: Path) -> None:
    compilers = _copying_compilers(empty.parents[2] / "compilers", unpacked / "build" / "objects")
    run(empty, *PIP, *INSTALL, sdist, cwd=empty.parents[2], **compilers)
    _assert_installed(empty)


def _writes_nothing_there(tree: Path) -> list[str]:
    """A prefix for a command that may not write to the tree, whoever runs the tests."""
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() != 0:
        return []
    # Root may write anywhere, unless it gives that up.
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


def test_a_read_only_source_tree_installs(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> None:  # FIELD N1
    tree = checkout(tmp_path_factory.mktemp("readonly"))
    take_objects(tree)
    before = sorted(tree.rglob("*"))
    prefix = _writes_nothing_there(tree)
    refused = subprocess.run([*prefix, "touch", tree / "new"], capture_output=True, text=True)
    assert refused.returncode != 0, "the tree can be written to, so nothing is tested"
    try:
        run(*prefix, empty, *PIP, *INSTALL, tree, cwd=empty.parent, **same_build())
        _assert_installed(empty)
        assert sorted(tree.rglob("*")) == before
    finally:
        for path in [tree, *tree.rglob("*")]:
            path.chmod(0o755)


def test_an_old_setuptools_is_one_clear_line(tmp_path: Path) -> None:  # FIELD N1
    (tmp_path / "setuptools" / "command").mkdir(parents=True)
    (tmp_path / "setuptools" / "__init__.py").write_text("__version__ = '66.1.1'\n")
    command = [sys.executable, str(ROOT / "setup.py"), "--version"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "bittorch's build needs setuptools 77 or later, and 66.1.1 is installed here: pip install 'setuptools>=77'\n"
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"BITTORCH_CUDA": "yes"}, "BITTORCH_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"BITTORCH_CUDA": "1", "CUDA_HOME": "/nowhere"}, "none of ['/nowhere'] holds bin/nvcc; set CUDA_HOME"),
        ({"MAX_JOBS": "many"}, "MAX_JOBS must be a positive number, got 'many'"),
        ({"CC": "no-such-compiler"}, "no-such-compiler is not installed; install a C and a C++ compiler"),
    ],
    ids=str,
)
def test_a_build_that_cannot_be_is_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str], message: str
) -> None:
    tree = checkout(tmp_path_factory.mktemp("checkout"))
    for path in (tree / "csrc").rglob("*.cpp"):
        path.unlink()  # the slow ones, which say nothing here
    environment = {**os.environ, "BITTORCH_CUDA": "0", **variables}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


SETTINGS = """
import ast, json, os, re, shutil, subprocess, sys
from pathlib import Path
tree = ast.parse(Path({path!r}).read_text())
wanted = ("setting", "find_cuda_home", "toolkits", "max_jobs")
body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
exec(compile(ast.Module(body, []), "setup.py", "exec"))
cuda = find_cuda_home()
print(json.dumps([str(cuda), max_jobs(), setting("CC", "cc"), setting("CXX", "c++"), setting("TORCH_CUDA_ARCH_LIST")]))
"""


def test_an_empty_variable_of_the_build_counts_as_unset(tmp_path: Path) -> None:  # FIELD R17
    names = ("BITTORCH_CUDA", "CUDA_HOME", "MAX_JOBS", "CC", "CXX", "TORCH_CUDA_ARCH_LIST")
    unset = {name: value for name, value in os.environ.items() if name not in names}
    code = SETTINGS.format(path=str(ROOT / "setup.py"))
    results = []
    for environment in (unset, {**unset, **dict.fromkeys(names, "")}):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(done.stdout)
    assert results[0] == results[1]
    assert '"cc", "c++", ""]' in results[0]


def test_metadata_names_the_torch_that_it_was_built_against(wheel: Path) -> None:  # FIELD N10
    major, minor = _extension.minor_version(torch.__version__)
    metadata = _metadata(wheel)
    required = [text for text in metadata.get_all("Requires-Dist") or [] if "extra ==" not in text]
    assert required == [f"torch=={major}.{minor}.*", "numpy>=1.26", "safetensors>=0.5"]
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == "<3.14,>=3.10"
    assert metadata["Author"] == "bittorch contributors"
    assert re.fullmatch(rf"bittorch-{re.escape(__version__)}-cp310-abi3-linux_\w+\.whl", wheel.name)


def test_an_sdist_requires_no_torch_in_particular(unpacked: Path) -> None:  # FIELD N10
    metadata = email.message_from_string((unpacked / "PKG-INFO").read_text())
    assert "torch>=2.8" in (metadata.get_all("Requires-Dist") or [])


def test_the_sdist_holds_every_source(unpacked: Path) -> None:
    for folder in ("bittorch", "csrc", "tests", "examples", "docs", "packaging"):
        for path in (ROOT / folder).rglob("*"):
            built = "__pycache__" in path.parts or path.suffix in (".so", ".pyc") or path.name == "_build_info.py"
            if path.is_file() and not built:
                assert (unpacked / path.relative_to(ROOT)).is_file(), path


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"bittorch", f"bittorch-{__version__}.dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "bittorch").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    shim = _extension.shim_name(_extension.minor_version(torch.__version__))
    libraries = {name for name in names if ".so" in name}
    assert libraries == {f"bittorch/{_extension.LIBRARY}", f"bittorch/{shim}"}
    assert {"bittorch/_C.pyi", "bittorch/py.typed"} <= names


@pytest.mark.parametrize(
    ("library", "paths"),
    [(_extension.LIBRARY, []), (Path(_C.__file__ or "").name, ["$ORIGIN:$ORIGIN/../torch/lib"])],
)
def test_the_libraries_name_no_folder_of_the_builder(  # FIELD N10
    wheel: Path, tmp_path: Path, library: str, paths: list[str]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        extension = Path(archive.extract(f"bittorch/{library}", tmp_path))
    dynamic = run("readelf", "--dynamic", "--wide", extension, cwd=tmp_path)
    assert re.findall(r"\((?:RUNPATH|RPATH)\)\s+Library \w+: \[(.*)\]", dynamic) == paths
    content = extension.read_bytes()
    for folder in (ROOT, Path(torch.__file__).parent, Path(sys.prefix)):
        assert str(folder).encode() not in content, folder


def test_build_shim_makes_the_missing_shim(wheel: Path, unpacked: Path, empty: Path) -> None:
    run(empty, *PIP, *INSTALL, wheel, cwd=wheel.parent)
    (shim,) = empty.parent.parent.rglob("_C.torch*.so")
    shim.rename(shim.with_name("_C.torch10.abi3.so"))
    command = [empty, "-m", "bittorch", "build-shim"]
    refused = attempt(*command, cwd=wheel.parent)
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "bittorch: error: this installation has no sources; unpack the source distribution"
    )
    made = attempt(*command, unpacked, cwd=wheel.parent, CUDA_HOME="/nowhere")
    assert made.stdout.startswith(f"{shim.parent} is for torch 1.0 and "), made.stderr
    assert "CUDA" not in made.stdout + made.stderr  # the kernels, with CUDA or without, are what they were
    shim.with_name("_C.torch10.abi3.so").unlink()
    _assert_installed(empty)


def test_build_shim_refuses_the_sources_of_other_kernels(
    wheel: Path, empty: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run(empty, *PIP, *INSTALL, wheel, cwd=wheel.parent)
    tree = checkout(tmp_path_factory.mktemp("others"))
    with (tree / "csrc/kernels/bt_common.h").open("a") as header:
        header.write("/* another interface */\n")
    command = [empty, "-m", "bittorch", "build-shim", tree]
    refused = attempt(*command, cwd=wheel.parent)
    assert refused.returncode == 1
    assert "of other sources than those in" in refused.stderr.splitlines()[-1]
