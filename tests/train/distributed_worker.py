"""What two processes check together; `test_distributed.py` starts it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import bittorch
from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig
from bittorch.train import QuantWarmup, TernaryAfter
from tests import helpers, two_processes

# What each process computes of a sample has the bits that one process computes, as long as the weights have them. The
# gradient is a sum of two halves, so in fp32 it differs in the last bits, and the weights after it. That moves a loss
# by some ulps. A weight that comes to lie on the other side of its threshold would move it by far more: with so few
# weights and steps none does.
LOSS = 1e-6
WEIGHT = 1e-6
STEPS = 6
LINEAR = {
    "max": TernaryQuantConfig(method="max"),
    "twn": TernaryQuantConfig(method="twn", per_channel=False),
    "absmean": TernaryQuantConfig(method="absmean", granularity="group", group_size=16),
    "nm34": TernaryQuantConfig(method="nm34"),
    "clipped": TernaryQuantConfig(ste="clipped"),
    "lsq": TernaryQuantConfig(method="lsq"),
    "seq": TernaryQuantConfig(method="seq", per_channel=False),  # one scale: one process holds all of it
    "ttq": TernaryQuantConfig(method="ttq"),
    "int8": TernaryQuantConfig(activation_bits=8),
    "lsq int8": TernaryQuantConfig(method="lsq", activation_bits=8),
    "24 bits": TernaryQuantConfig(activation_bits=24),
}
CONV = {
    "twn": TernaryQuantConfig(method="twn"),
    "int8": TernaryQuantConfig(activation_bits=8),
    "lsq": TernaryQuantConfig(method="absmean"),
    "seq": TernaryQuantConfig(method="seq"),
    "ttq": TernaryQuantConfig(method="ttq"),
    "clipped": TernaryQuantConfig(ste="clipped"),
    "lsq int8": TernaryQuantConfig(method="lsq", activation_bits=8),
}
X, Y = helpers.randn(16, 3, 6, 6), torch.arange(16) % 7
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def model(name: str = "max") -> nn.Sequential:
    torch.manual_seed(0)
    linear, conv = LINEAR[name], CONV.get(name, TernaryQuantConfig())
    return nn.Sequential(
        TernaryConv2d(3, 5, 3, padding=1, config=conv),  # 5 filters: not the same number in both processes
        nn.ReLU(),
        nn.Flatten(),
        TernaryLinear(180, 32, config=linear) if name != "absmean" else TernaryLinear(180, 32),
        nn.ReLU(),
        TernaryLinear(32, 7, config=linear),
    )


def sharded(plain: nn.Sequential, **options: object) -> nn.Sequential:
    """The first linear layer by itself, the others together."""
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(plain[3], mesh=mesh, **options)
    fully_shard(plain, mesh=mesh, **options)
    return plain


def mine(t: Tensor) -> Tensor:
    return t.chunk(2)[dist.get_rank()]


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.3, momentum=0.9, weight_decay=1e-3)


def train(
    net: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer | None = None, schedules: tuple = ()
) -> Tensor:
    """The loss before each step."""
    optimizer, losses = optimizer or sgd(net), []
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(net(x), y)
        losses.append(loss.detach().clone())
        optimizer.zero_grad()
        loss.backward()
        for part in (optimizer, *schedules):
            part.step()
    return torch.stack(losses)


def mean(losses: Tensor) -> Tensor:
    """Over the processes; each has half of the batch."""
    dist.all_reduce(losses)
    return losses / 2


def assert_same_training(name: str, wrap: Callable[[nn.Sequential], nn.Module]) -> None:
    single, net = model(name), wrap(model(name))
    first = single[3].dequantized_weight()
    expected, losses = train(single, X, Y), mean(train(net, mine(X), mine(Y)))
    assert expected[-1] < expected[0]
    flips = (single[3].dequantized_weight().sign() != first.sign()).double().mean()
    assert flips > 0.005, f"{name} tests little: {flips:.2%} of the codes changed"
    torch.testing.assert_close(losses, expected, rtol=LOSS, atol=0, msg=lambda text: f"losses of {name}: {text}")
    for actual, wanted in zip(net.parameters(), single.parameters(), strict=True):
        assert helpers.relative_l2(whole(actual), wanted) <= WEIGHT, name


@check
def ddp_trains_as_one_process() -> None:
    for name in LINEAR:
        assert_same_training(name, DistributedDataParallel)


@check
def ddp_processes_have_one_scale() -> None:
    """Each process makes other weights, and initialises them later: the first one's count, and its scale with them."""
    for name in ("lsq", "seq", "ttq"):
        torch.manual_seed(dist.get_rank())
        layer = TernaryLinear(180, 32, config=LINEAR[name])
        nn.init.normal_(layer.weight, std=0.002)
        net = DistributedDataParallel(layer)
        net(mine(X).flatten(1).repeat(1, 2)[:, :180]).sum().backward()
        both = [torch.empty_like(layer.weight_scale) for _ in range(2)]
        dist.all_gather(both, layer.weight_scale.detach())
        expected = TernaryLinear.from_linear(layer, LINEAR[name]).weight_scale
        assert torch.equal(both[0], both[1]), name
        assert torch.equal(both[0], expected), name


@check
def fsdp_starts_at_the_scale_of_the_weights() -> None:
    for name in ("lsq", "seq", "ttq"):
        plain, net = model(name), model(name)
        for one in (plain, net):
            for i in (0, 3, 5):
                nn.init.normal_(one[i].weight, std=0.002, generator=torch.Generator().manual_seed(i))
        assert torch.equal(sharded(net)(X), plain(X)), name


@check
def fsdp_trains_as_one_process() -> None:
    for name in LINEAR:
        assert_same_training(name, sharded)


@check
def schedules_work_on_sharded_layers() -> None:
    single, net = model("lsq"), sharded(model("lsq"))
    losses = []
    for one, x, y in ((single, X, Y), (net, mine(X), mine(Y))):
        schedules = (TernaryAfter(one, 2), QuantWarmup(one, 5))
        losses.append(train(one, x, y, schedules=schedules))
    torch.testing.assert_close(mean(losses[1]), losses[0], rtol=LOSS, atol=0)
    for one in (single, net):
        with torch.no_grad():
            one[3].weight.mul_(2)
            one[5].weight.mul_(2)
        for layer in (one[3], one[5]):
            layer.reset_scale()
    for layer in (3, 5):
        torch.testing.assert_close(whole(net[layer].weight_scale), single[layer].weight_scale, rtol=1e-6, atol=0)


@check
def full_state_of_a_sharded_model_exports() -> None:
    for name in ("max", "lsq int8"):
        net = sharded(model(name))
        train(net, mine(X), mine(Y))
        state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        outputs = net.eval()(X)
        if dist.get_rank() == 0:  # the full state comes to one process alone
            plain = model(name)
            plain.load_state_dict(state)
            assert torch.equal(bittorch.export_for_inference(plain)(X), outputs)


@check
def sharded_layers_gather_what_they_give() -> None:
    for name in ("max", "lsq", "ttq"):
        plain, net = model(name), sharded(model(name))
        for i in (0, 3, 5):
            assert torch.equal(net[i].dequantized_weight(), plain[i].dequantized_weight())
            if not plain[i].config.packs:
                continue
            export = bittorch.export_linear_to_inference if i else bittorch.export_conv2d_to_inference
            actual, expected = export(net[i]).state_dict(), export(plain[i]).state_dict()
            assert actual.keys() == expected.keys()
            assert all(torch.equal(actual[key], expected[key]) for key in expected)


@check
def own_hooks_of_a_sharded_layer_stop_its_export() -> None:
    net = sharded(model())
    net[3].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="it has forward hooks"):
        bittorch.export_linear_to_inference(net[3])


@check
def export_of_a_sharded_model_says_what_to_do() -> None:
    for wrapped, remedy in ((sharded(model()), "full state dict"), (DistributedDataParallel(model()), "model.module")):
        with pytest.raises(TypeError, match=remedy):
            bittorch.export_for_inference(wrapped)


@check
def conversion_of_a_wrapped_model_says_what_to_do() -> None:
    dense = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)]
    fully_shard(dense[0][1], mesh=init_device_mesh("cpu", (2,)))  # a part alone
    for wrapped, remedy in ((dense[0], "then shard it"), (DistributedDataParallel(dense[1]), "then wrap it")):
        for convert in (bittorch.quantize_, bittorch.quantize_model):
            with pytest.raises(TypeError, match=remedy):
                convert(wrapped)


@check
def reports_see_the_whole_of_a_sharded_model() -> None:
    plain, net = model("twn"), sharded(model("twn"))
    assert str(bittorch.utils.summary(net)) == str(bittorch.utils.summary(plain))
    doctors = [bittorch.utils.AccuracyDoctor(one, flips=1e-9) for one in (plain, net)]
    found = []
    for doctor, one, x, y in zip(doctors, (plain, net), (X, mine(X)), (Y, mine(Y)), strict=True):
        doctor.check()
        train(one, x, y)
        found.append([(finding.layer, finding.kind) for finding in doctor.check()])
    assert found[0] == found[1]
    assert any(kind == "flip_rate" for _, kind in found[0])


@check
def training_resumes_from_a_distributed_checkpoint() -> None:
    folder = Path(sys.argv[3])
    for name in ("max", "seq", "int8"):
        net = sharded(model(name))
        optimizer = sgd(net)
        train(net, mine(X), mine(Y), optimizer)
        weights, moments = get_state_dict(net, optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / name)
        if dist.get_rank() == 0:
            torch.save({key: whole(value) for key, value in weights.items()}, folder / f"{name}.pt")
        else:
            [whole(value) for value in weights.values()]  # gathering takes both
        expected = train(net, mine(X), mine(Y), optimizer)

        other = sharded(model(name))
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        resumed = sgd(other)
        weights, moments = get_state_dict(other, resumed)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=folder / name)
        set_state_dict(other, resumed, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        assert torch.equal(train(other, mine(X), mine(Y), resumed), expected)
        for a, b in zip(other.parameters(), net.parameters(), strict=True):
            assert torch.equal(whole(a), whole(b))


@check
def param_dtype_bfloat16_quantises_rounded_masters() -> None:
    net = sharded(model(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    rounded = copy.deepcopy(model()).bfloat16()
    assert torch.equal(net(X), rounded(X.bfloat16()))
    assert net[3].weight.dtype == torch.float32
    net(mine(X)).float().square().mean().backward()
    assert whole(net[3].weight.grad).dtype == torch.float32


def fsdp1(plain: nn.Sequential, use_orig_params: bool) -> FullyShardedDataParallel:
    """The first linear layer by itself, the others together."""
    options = {"use_orig_params": use_orig_params, "device_id": torch.device("cpu")}
    plain[3] = FullyShardedDataParallel(plain[3], **options)
    return FullyShardedDataParallel(plain, **options)


@check
def fsdp1_exports_where_its_parameters_are_whole() -> None:  # FIELD T14
    for name, use_orig_params in (("max", True), ("lsq int8", True), ("twn", False)):
        net = fsdp1(model(name), use_orig_params)
        with FullyShardedDataParallel.summon_full_params(net):
            packed, report = bittorch.export_for_inference(net), bittorch.utils.summary(net)
        expected = bittorch.export_for_inference(model(name))
        state = expected.state_dict()
        assert packed.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in packed.state_dict().items())
        assert torch.equal(packed(X), expected(X))
        assert str(report) == str(bittorch.utils.summary(model(name)))


@check
def fsdp1_takes_a_learned_scale_as_it_is_used() -> None:
    for use_orig_params in (True, False):
        plain, net = model("lsq"), model("lsq")
        for one in (plain, net):
            nn.init.normal_(one[3].weight, std=0.002, generator=torch.Generator().manual_seed(1))
        wrapped = fsdp1(net, use_orig_params)
        assert torch.equal(wrapped(X), plain(X)), use_orig_params


@check
def fsdp1_exports_on_the_process_that_has_the_parameters() -> None:  # FIELD T14
    net = fsdp1(model("twn"), True)
    with FullyShardedDataParallel.summon_full_params(net, writeback=False, rank0_only=True):
        if dist.get_rank() == 0:
            assert torch.equal(bittorch.export_for_inference(net)(X), bittorch.export_for_inference(model("twn"))(X))
        else:
            with pytest.raises(ValueError, match=r"cannot export 0: its weight is \(.*\) instead of"):
                bittorch.export_for_inference(net)


@check
def fsdp1_outside_says_what_to_do() -> None:  # FIELD T14
    for use_orig_params in (True, False):
        net = fsdp1(model(), use_orig_params)
        with pytest.raises(TypeError, match=r"wrapped in FullyShardedDataParallel; export inside .*summon_full_params"):
            bittorch.export_for_inference(net)
        if use_orig_params:
            for act in (bittorch.export_linear_to_inference, bittorch.utils.summary):
                with pytest.raises(
                    ValueError, match=r"its weight is \(.*\) instead of \(32, 180\).*summon_full_params"
                ):
                    act(net.module[3].module)
        dense = fsdp1(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), use_orig_params)
        with (
            FullyShardedDataParallel.summon_full_params(dense),
            pytest.raises(TypeError, match="wrapped in FullyShardedDataParallel; convert the model first, then wrap"),
        ):
            bittorch.quantize_(dense)


if __name__ == "__main__":
    two_processes.run(CHECKS)
