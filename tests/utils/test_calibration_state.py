"""The folder of a calibrated conversion."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bittorch import TernaryQuantConfig
from bittorch.utils.calibration_state import CalibrationState, fingerprint
from tests import helpers

PLANES = {"a": (torch.arange(6, dtype=torch.uint8).view(3, 2), torch.ones(3)), "b": (torch.zeros(1, 1), torch.ones(1))}


def test_parts_come_back(tmp_path: Path) -> None:
    CalibrationState(tmp_path / "s", {"depth": 3}).save("block 0", PLANES)
    state = CalibrationState(tmp_path / "s", {"depth": 3})
    assert state.load("block 1", ["a"]) is None
    found = state.load("block 0", ["a", "b"])
    assert found is not None
    assert all(torch.equal(found[name][i], PLANES[name][i]) for name in PLANES for i in (0, 1))
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["block-0.safetensors", "conversion.json"]


def test_another_conversion_is_refused_by_name(tmp_path: Path) -> None:
    CalibrationState(tmp_path / "s", {"depth": 3, "damping": 0.01})
    with pytest.raises(ValueError, match=r"s holds another conversion: depth 3 there, 2 asked for\. Name another"):
        CalibrationState(tmp_path / "s", {"depth": 2, "damping": 0.01})
    (tmp_path / "s" / "conversion.json").write_text("{}")
    with pytest.raises(ValueError, match="depth null there, 3 asked for"):
        CalibrationState(tmp_path / "s", {"depth": 3})
    for text in (b"{", b"\xff"):
        (tmp_path / "s" / "conversion.json").write_bytes(text)
        with pytest.raises(ValueError, match=r"conversion\.json is damaged"):
            CalibrationState(tmp_path / "s", {"depth": 3})


def test_other_places_and_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is there and holds no conversion"):
            CalibrationState(place, {})
    state = CalibrationState(tmp_path / "new" / "s", {})
    state.save("block 0", PLANES)
    for damage in (b"", b"\xff" * 100):
        (tmp_path / "new" / "s" / "block-0.safetensors").write_bytes(damage)
        with pytest.raises(ValueError, match=r"block-0\.safetensors is damaged"):
            state.load("block 0", ["a"])
    state.save("block 0", {"a": PLANES["a"]})
    with pytest.raises(ValueError, match=r"block-0\.safetensors is damaged .*b\.weight_packed"):
        state.load("block 0", ["a", "b"])


def test_fingerprint_sees_all_that_planes_depend_on() -> None:
    torch.manual_seed(0)
    model, config = nn.Linear(4, 4), TernaryQuantConfig()
    x = {"ids": helpers.randn(3), "mask": None}

    def made(weight: torch.Tensor = model.weight, config: TernaryQuantConfig = config, depth: int = 2, x: object = x):
        return fingerprint(model, {"": weight}, {"": config}, {"": depth}, [x])

    assert made() == made()
    other = {"ids": x["ids"].clone(), "mask": None}
    assert made(x=other) == made()
    other["ids"][1] += 1e-6
    for change in (
        made(x=other),
        made(x=(x["ids"],)),
        made(depth=3),
        made(config=TernaryQuantConfig(activation_bits=8)),
        made(weight=model.weight.double()),
        made(weight=model.weight + 1e-7),
        made(weight=model.weight.bfloat16()),
    ):
        assert change != made()
    before = made()
    with torch.no_grad():
        model.bias += 1  # is not converted, and activations depend on it
    assert made() != before
