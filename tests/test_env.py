import json
import os
from pathlib import Path

import pytest

from bittorch import _C, _env
from tests import helpers

PRODUCTS = {"ternary_linear_packed": "float32", "ternary_linear_w2a8": "int8", "ternary_conv2d_packed": "float32"}
VARIANTS = sorted({variant for op in PRODUCTS for variant in helpers.variants(op)})

REPORT = f"""
import json, bittorch
chosen = {{op: bittorch._C.chosen_kernel(op, "cpu", dtype) for op, dtype in {PRODUCTS}.items()}}
print(json.dumps(chosen))
"""


def _chosen(code: str = REPORT, **environment: str) -> dict[str, str]:
    result = helpers.run_python(code, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def _automatic() -> dict[str, str]:
    return {op: helpers.variants(op, dtype)[0] for op, dtype in PRODUCTS.items()}


VALUES = ["auto", "baseline", "tiled", *VARIANTS]
EVERY_VALUE = f"""
import json, os, bittorch
found = {{"": {{op: bittorch._C.chosen_kernel(op, "cpu", dtype) for op, dtype in {PRODUCTS}.items()}}}}
for value in {VALUES}:
    for op in {PRODUCTS}:
        bittorch._C.set_default_kernel(op, "auto")
    os.environ["BITTORCH_PACKED_KERNEL"] = value
    bittorch._env.apply(bittorch._C)
    found[value] = {{op: bittorch._C.chosen_kernel(op, "cpu", dtype) for op, dtype in {PRODUCTS}.items()}}
print(json.dumps(found))
"""


def _expected(value: str) -> dict[str, str]:
    expected = {}
    for op, automatic in _automatic().items():
        names = helpers.variants(op, PRODUCTS[op])
        roles = {"auto": automatic, "baseline": "scalar", "tiled": automatic}
        expected[op] = roles.get(value) or (value if value in names else automatic)
    return expected


def test_every_value_of_packed_kernel_changes_the_choice() -> None:
    found = _chosen(EVERY_VALUE)
    assert found[""] == _automatic()  # without the variable the first usable kernel
    for value in VALUES:
        if value != "tiled" or "scalar" not in _automatic().values():  # a machine without a tiled kernel
            assert found[value] == _expected(value), value


@pytest.mark.parametrize(
    ("variable", "valid"),
    [
        ("BITTORCH_PACKED_KERNEL", ["auto", "baseline", "tiled", "scalar"]),
        ("BITTORCH_INFER_KERNEL", ["packed", "baseline"]),
    ],
)
@pytest.mark.parametrize("value", ["nosuch", " ", "AVX2"])
def test_unknown_value_is_an_error_that_lists_the_valid(
    monkeypatch: pytest.MonkeyPatch, variable: str, valid: list[str], value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} must be one of .*, got {value!r}") as error:
        _env.apply(_C) if variable == _env.PACKED_KERNEL else _env._infer_variant()
    assert all(name in str(error.value) for name in valid)


@pytest.mark.parametrize(
    "variable", ["BITTORCH_PACKED_KERNEL", pytest.param("BITTORCH_INFER_KERNEL", marks=pytest.mark.slow)]
)
def test_an_unknown_value_ends_the_import(variable: str) -> None:
    result = helpers.run_python("import bittorch", **{variable: "nosuch"})
    assert result.returncode != 0
    assert f"{variable} must be one of" in result.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_an_empty_variable_counts_as_unset() -> None:  # FIELD R17
    assert _chosen(BITTORCH_PACKED_KERNEL="", BITTORCH_INFER_KERNEL="") == _automatic()


LAYER = """
import json, torch, bittorch
op, name = ("ternary_linear_packed", "cpu", "float32"), bittorch._env.INFER_VARIANT
report = {"layers": bittorch._C.chosen_kernel(*op, name), "others": bittorch._C.chosen_kernel(*op)}
bittorch._C.force_kernel(op[0], "tiled")
report["forced"] = bittorch._C.chosen_kernel(*op, name)
print(json.dumps(report))
"""


@pytest.mark.slow
def test_infer_kernel_is_the_choice_of_inference_layers_alone() -> None:
    best = _automatic()["ternary_linear_packed"]
    report = _chosen(LAYER, BITTORCH_INFER_KERNEL="baseline")
    assert report == {"layers": "scalar", "others": best, "forced": best}


def test_infer_kernel_goes_before_packed_kernel() -> None:
    best, other = _automatic()["ternary_linear_packed"], helpers.variants("ternary_linear_packed", "float32")[-2:][0]
    report = _chosen(LAYER, BITTORCH_INFER_KERNEL="baseline", BITTORCH_PACKED_KERNEL=other)
    assert report == {"layers": "scalar", "others": other, "forced": best}


def test_a_forced_kernel_leaves_types_that_it_lacks_automatic() -> None:
    with helpers.forced("act_quantize", helpers.variants("act_quantize")[0]):
        assert _C.chosen_kernel("act_quantize", "cpu", "int8") == "scalar"


PRECEDENCE = """
import json, bittorch
op = "ternary_linear_packed"
first = bittorch._C.chosen_kernel(op, "cpu", "float32")
bittorch._C.force_kernel(op, %r)
second = bittorch._C.chosen_kernel(op, "cpu", "float32")
bittorch._C.force_kernel(op, None)
print(json.dumps([first, second, bittorch._C.chosen_kernel(op, "cpu", "float32")]))
"""


@pytest.mark.slow
def test_force_kernel_goes_before_the_variable_until_it_is_taken_back() -> None:
    best = _automatic()["ternary_linear_packed"]
    assert _chosen(PRECEDENCE % best, BITTORCH_PACKED_KERNEL="baseline") == ["scalar", best, "scalar"]


def test_an_argument_goes_before_force_kernel() -> None:
    """A kernel that was forced takes no part in a call that names another: an unknown name still raises."""
    import torch

    from bittorch import ops

    x, packed, scale = torch.ones(2, 8), torch.zeros(4, 2, dtype=torch.uint8), torch.ones(4)
    with helpers.forced("ternary_linear_packed", "scalar"):
        for variant in helpers.variants("ternary_linear_packed", "float32"):
            ops.ternary_linear_packed(x, packed, scale, variant=variant)
        with pytest.raises(ValueError, match="no kernel 'nosuch'"):
            ops.ternary_linear_packed(x, packed, scale, variant="nosuch")


def test_apply_sets_only_ops_that_have_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[str, str]] = []

    class Extension:
        @staticmethod
        def kernels() -> list[dict[str, object]]:
            return [
                {"op": "ternary_linear_packed", "variant": "avx512", "usable": True},
                {"op": "ternary_linear_packed", "variant": "neon", "usable": False},
                {"op": "ternary_linear_w2a8", "variant": "avx512vnni", "usable": True},
            ]

        @staticmethod
        def set_default_kernel(op: str, name: str) -> None:
            chosen.append((op, name))

    monkeypatch.setenv("BITTORCH_PACKED_KERNEL", "avx512vnni")
    _env.apply(Extension)
    assert chosen == [("ternary_linear_w2a8", "avx512vnni")]
    monkeypatch.setenv("BITTORCH_PACKED_KERNEL", "neon")
    with pytest.raises(ValueError, match="must be one of auto, baseline, tiled, avx512, avx512vnni, got 'neon'"):
        _env.apply(Extension)


def test_kernel_rows_have_the_promised_fields() -> None:
    rows = _C.kernels()
    assert {"ternary_linear_packed", "ternary_linear_w2a8"} <= {row["op"] for row in rows}
    for row in rows:
        assert set(row) == {"op", "device", "dtypes", "variant", "usable"}
        assert row["device"] in ("cpu", "cuda")
        assert set(row["dtypes"]) <= {"float32", "float16", "bfloat16", "int8"}
    # Every op ends in a kernel that any CPU can run.
    for op in {row["op"] for row in rows}:
        assert helpers.variants(op)[-1] == "scalar"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("/caches", "/caches/bittorch"), ("relative", "/home/u/.cache/bittorch"), ("", "/home/u/.cache/bittorch")],
)
def test_cache_directory_follows_the_xdg_specification(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert _env.cache_directory() == Path(expected)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _env.cache_directory() == Path("/home/u/.cache/bittorch")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without HOME and without an entry in the system's list of users; returns the directory of temporaries."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_a_home_has_a_temporary_cache(homeless: Path) -> None:  # FIELD R16
    assert _env.home_cache() is None
    directory = _env.cache_directory()
    assert directory == homeless / f"bittorch-{os.getuid()}" == _env.cache_directory()
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "file", "open to all"])
def test_the_temporary_cache_is_no_one_elses(homeless: Path, kind: str) -> None:  # FIELD R16
    path = homeless / f"bittorch-{os.getuid()}"
    if kind == "link":
        (homeless / "other").mkdir()
        path.symlink_to(homeless / "other")
    elif kind == "file":
        path.write_text("")
    else:
        path.mkdir()
        path.chmod(0o777)
    with pytest.raises(OSError, match=path.name):
        _env.cache_directory()
