"""What a trial of training changes is put back exactly."""

import contextlib
import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bittorch import TernaryLinear, TernaryQuantConfig
from bittorch.train import QuantWarmup
from bittorch.train.restore import restored
from tests import helpers

X, Y = helpers.randn(24, 8), torch.arange(24) % 3


class _Run:
    """A model in the middle of training, with everything that a step changes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        lsq = TernaryQuantConfig(method="lsq")
        self.model = nn.Sequential(
            TernaryLinear(8, 12, config=lsq), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.BatchNorm1d(12),
            TernaryLinear(12, 3),
        )  # fmt: skip
        self.model[4].eval()  # frozen statistics inside a model in training mode
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        generator = torch.Generator().manual_seed(5)
        self.loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True, generator=generator)
        self.train()
        self.model.add_module("late", TernaryLinear(3, 3, config=lsq))  # its scale still follows the weights

    def train(self) -> list[Tensor]:
        losses = []
        for x, y in self.loader:
            random.random(), np.random.rand()
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return losses

    def tensors(self) -> dict[str, Tensor]:
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        grads = {f"{name}.grad": p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        state = {f"{i}.{key}": v for i, s in enumerate(self.optimizer.state.values()) for key, v in s.items()}
        return {**named, **grads, **state}

    def others(self) -> list[Any]:
        modules = list(self.model.modules())
        scales = [getattr(module, "_scale_state", None) for module in modules]
        ran = [module.__dict__.get("forward_ran") for module in modules]
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        numbers = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
        generator = self.loader.generator.get_state().tolist()
        return [[module.training for module in modules], scales, ran, groups, numbers, generator]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_everything_is_as_before(error: type[BaseException] | None) -> None:
    run, twin = _Run(), _Run()
    tensors, others = run.tensors(), copy.deepcopy(run.others())
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    outside = contextlib.nullcontext() if error is None else pytest.raises(error)
    with outside, restored(run.model, run.optimizer, run.loader):
        run.optimizer.param_groups[0]["lr"] = 0.5
        run.train()
        run.model.eval()
        run.model[0].quant_lambda = 0.5
        run.model[1].running_mean = torch.ones(12)
        assert not torch.equal(run.model[0].weight, values["0.weight"])
        if error is not None:
            raise error
    after = run.tensors()
    assert {name: id(tensor) for name, tensor in after.items()} == {name: id(t) for name, t in tensors.items()}
    for name, tensor in after.items():
        helpers.assert_same_bits(tensor.detach(), values[name])
    assert run.others() == others
    assert run.model[0].quant_lambda == 1
    state = torch.get_rng_state()
    losses = run.train()
    torch.set_rng_state(state)
    assert losses == twin.train()


def test_expanded_and_inference_buffers_are_left_alone() -> None:
    model = nn.Sequential(TernaryLinear(4, 4))
    with torch.inference_mode():
        frozen = torch.ones(3)
    model.register_buffer("frozen", frozen)
    model.register_buffer("expanded", torch.ones(1).expand(5))
    QuantWarmup(model, 2)
    with restored(model, torch.optim.SGD(model.parameters(), 0.1)):
        pass
    assert model.frozen is frozen
