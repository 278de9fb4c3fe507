"""These tests need a CUDA device and a build with CUDA kernels; elsewhere they are skipped, with the reason."""

import pytest
import torch

import bittorch


@pytest.fixture(autouse=True)
def _needs_device() -> None:
    if not any(row["device"] == "cuda" for row in bittorch._C.kernels()):
        pytest.skip("this build of bittorch has no CUDA kernels")
    if not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
