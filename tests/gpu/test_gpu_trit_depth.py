"""Layers of several trit planes on a CUDA device against the CPU."""

import pytest
import torch
from torch import nn

from bittorch import TernaryLinearInference, TernaryQuantConfig
from tests import helpers

CONFIGS = (TernaryQuantConfig(), TernaryQuantConfig(granularity="group", group_size=64))


def _layers(config: TernaryQuantConfig, bits: int | None, columns: int) -> tuple[nn.Module, nn.Module]:
    linear = nn.Linear(columns, 70)
    config = TernaryQuantConfig.from_dict({**config.to_dict(), "activation_bits": bits})
    layer = TernaryLinearInference.from_linear(linear, 3, config)
    return layer, TernaryLinearInference.from_linear(linear.cuda(), 3, config)


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("batch", [0, 1, 16, 33])
def test_floating_activations_come_near_the_cpu(config: TernaryQuantConfig, dtype: torch.dtype, batch: int) -> None:
    on_cpu, on_gpu = _layers(config, None, 128)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on_cpu.buffers(), on_gpu.buffers(), strict=True))
    x = helpers.randn(batch, 128, dtype=dtype)
    y = on_gpu(x.cuda())
    assert y.dtype == dtype
    helpers.assert_near(y.cpu(), on_cpu(x).double())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert on_gpu(x.cuda()).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("columns", [128, 130])
def test_quantised_activations_give_the_bits_of_the_cpu(bits: int, columns: int) -> None:
    on_cpu, on_gpu = _layers(CONFIGS[0], bits, columns)
    x = helpers.randn(9, columns)
    helpers.assert_same_bits(on_gpu(x.cuda()).cpu(), on_cpu(x))
