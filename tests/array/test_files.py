import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bittorch.array import TernaryArray, load, save
from tests.array.arrays import assert_same


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_arrays_come_back(ending: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-1, 2, (3, 7), np.int8)
    arrays = {"w": TernaryArray(values).T, "empty": TernaryArray.zeros((0, 2)), "scalar": TernaryArray(-1)}
    save(tmp_path / f"a.{ending}", arrays)
    read = load(tmp_path / f"a.{ending}")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_same(read[name], array.to_numpy())
    read["w"][0] = 0


def test_packed_bytes_of_another_file_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **{"w.trits": np.array([3], np.uint8), "w.shape": np.array([2])})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a\.npz: w: packed holds the reserved code 11 at index \(0,\)"):
        load(path)
    np.savez(path, **{"w.trits": np.array([0], np.uint8), "w.shape": np.array([9])})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"w: packed must be 3 contiguous bytes for shape \(9,\), got 1"):
        load(path)
    np.savez(path, **{"w.trits": np.array([0], np.uint8)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no w\.shape"):
        load(path)
    other = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="holds no TernaryArrays"):
        load(other)


def test_files_that_make_no_sense_are_named(tmp_path: Path) -> None:
    npz, safe = tmp_path / "a.npz", tmp_path / "a.safetensors"
    for path in (npz, safe):
        path.write_bytes(b"not a file of arrays")
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
            load(path)
    np.savez(npz, **{"w.trits": np.array(["x"]), "w.shape": np.array([4])})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a\.npz: w: packed must be uint8, got <U1"):
        load(npz)
    for shapes in ("{", "[1]", '{"w": null}', '{"v": [4]}'):
        save_file({"w.trits": torch.zeros(1, dtype=torch.uint8)}, safe, {"ternary_shapes": shapes})
        with pytest.raises(ValueError, match=r"a\.safetensors: "):
            load(safe)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")


def test_safetensors_hold_the_stream(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", {"w": TernaryArray([1, -1, 0, 0, 1])})
    assert load_file(tmp_path / "a.safetensors")["w.trits"].tolist() == [0b1001, 1]


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.npz or \.safetensors, got .*a\.txt"):
        save(tmp_path / "a.txt", {})
    with pytest.raises(TypeError, match="w must be a TernaryArray, got ndarray"):
        save(tmp_path / "a.npz", {"w": np.zeros(3)})  # type: ignore[dict-item]
