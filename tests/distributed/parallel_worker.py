"""What two processes check together; `test_parallel.py` starts it."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

import bittorch
from bittorch import TernaryLinear, TernaryLinearInference, TernaryQuantConfig
from bittorch.distributed import (
    RowParallelInference,
    TernaryColwiseParallel,
    TernaryRowwiseParallel,
    row_parallel_linear,
)
from tests import helpers, two_processes

# Sums of halves of a row are rounded otherwise than the sum of the row; gradients of the input are such sums too.
FLOAT = 2e-6
# One process takes the gradient of digits from packed codes in 24 bits, a parallel layer in float32.
GRADIENT = 5e-6
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


@functools.cache
def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))


def mine(t: Tensor, dim: int = -1) -> Tensor:
    return t.chunk(2, dim)[dist.get_rank()]


def layer(k: int, n: int, config: TernaryQuantConfig | None = None, bias: bool = True) -> TernaryLinear:
    torch.manual_seed(k + n)
    made = TernaryLinear(k, n, bias, config=config)
    if made.bias is not None:
        torch.nn.init.normal_(made.bias)
    return made


def packed(k: int, n: int, config: TernaryQuantConfig | None = None) -> TernaryLinearInference:
    made = bittorch.export_for_inference(nn.Sequential(layer(k, n, config)).eval())[0]
    assert isinstance(made, TernaryLinearInference)
    return made


def applied(module: nn.Module, style: object) -> nn.Module:
    net = nn.Sequential(module)
    parallelize_module(net, mesh(), {"0": style})
    return net[0]


def tokens(k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = helpers.randn(2, 3, k)
    x[0, 1] *= 1000  # its largest value lies with one process
    x[1, 0] = 0
    return x.to(dtype)


def on_each_cut(whole: TernaryLinearInference, x: Tensor, limit: float = 0.0) -> None:
    """Both cuts of a layer against the layer; bit for bit without a limit."""
    expected = whole(x)
    columns = applied(copy.deepcopy(whole), TernaryColwiseParallel())
    assert torch.equal(columns(x), mine(expected))
    rows = applied(copy.deepcopy(whole), TernaryRowwiseParallel())
    assert rows.weight_packed.numel() * 2 == whole.weight_packed.numel()
    actual = rows(mine(x).contiguous())
    assert actual.dtype == expected.dtype
    if limit:
        assert 0 < helpers.relative_l2(actual, expected) <= limit
    else:
        assert torch.equal(actual, expected)


@check
def digits_have_the_bits_of_one_process() -> None:
    for bits in (8, 16, 24):
        for granularity in ("channel", "tensor"):
            config = TernaryQuantConfig(granularity=granularity, activation_bits=bits)
            for dtype in (torch.float32, torch.bfloat16):
                on_each_cut(packed(64, 24, config), tokens(64, dtype))


@check
def planes_have_the_bits_of_one_process() -> None:
    for bits, depth in ((8, 3), (24, 2), (16, 5)):
        dense = nn.Linear(64, 24)
        dense.weight.data = helpers.randn(24, 64)
        config = TernaryQuantConfig(activation_bits=bits)
        on_each_cut(TernaryLinearInference.from_linear(dense, depth, config), tokens(64))


@check
def sums_that_float32_does_not_hold_are_integers() -> None:
    columns = 400_000  # of which a process has more than one product takes exactly
    ones = torch.full((8, columns // 4), 0b10101010, dtype=torch.uint8)  # code 2: +1
    whole = TernaryLinearInference(columns, 8, bias=False, activation_bits=8)
    whole.weight_packed, whole.scale = ones, torch.ones(8)
    x = torch.full((1, columns), 1.0)
    # Sums of 4 k + 1 and 4 k + 5 near 2^24.6: rounded on the way their sum is 8 k + 4, and rounded once it is 8 k + 8.
    x[0, 0], x[0, -1] = 0, 4 / 127
    on_each_cut(whole, x)


@check
def floats_and_groups_are_near_one_process() -> None:
    for granularity in ("channel", "tensor"):
        on_each_cut(packed(256, 24, TernaryQuantConfig(granularity=granularity)), tokens(256), FLOAT)
    for bits in (None, 8, 24):
        config = TernaryQuantConfig(granularity="group", group_size=16, activation_bits=bits)
        on_each_cut(packed(256, 24, config), tokens(256), FLOAT)


@check
def a_norm_is_of_whole_rows() -> None:
    norm = nn.RMSNorm(64, eps=1e-6)
    norm.weight.data = 1 + 0.1 * helpers.randn(64)
    x = tokens(64)
    with torch.no_grad():
        for bits in (8, 16):
            whole = packed(64, 24, TernaryQuantConfig(activation_bits=bits))
            rows = applied(copy.deepcopy(whole), TernaryRowwiseParallel())
            assert torch.equal(rows(mine(x), norm), whole(x, norm))
        whole = packed(64, 24)
        rows = applied(copy.deepcopy(whole), TernaryRowwiseParallel())
        assert helpers.relative_l2(rows(mine(x), norm), whole(x, norm)) <= FLOAT


@check
def rows_with_nan_or_infinity_are_nan_alone() -> None:
    whole = packed(64, 24, TernaryQuantConfig(activation_bits=8))
    rows = applied(copy.deepcopy(whole), TernaryRowwiseParallel())
    for bad in (float("nan"), float("inf")):
        x = tokens(64)
        x[0, 0, 3] = bad  # with one process
        actual, expected = rows(mine(x)), whole(x)
        assert actual[0, 0].isnan().all()
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@check
def outputs_are_gathered_where_asked() -> None:
    whole = packed(64, 24, TernaryQuantConfig(activation_bits=8))
    gathered = applied(copy.deepcopy(whole), TernaryColwiseParallel(gather_output=True))
    assert torch.equal(gathered(tokens(64)), whole(tokens(64)))


@check
def autocast_rounds_activations_as_one_process_does() -> None:
    whole = packed(64, 24, TernaryQuantConfig(activation_bits=8))
    rows = applied(copy.deepcopy(whole), TernaryRowwiseParallel())
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = whole(tokens(64)), rows(mine(tokens(64)))
    assert expected.dtype == actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


def net(config: TernaryQuantConfig, gather: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(TernaryLinear(32, 64, config=config), nn.Tanh(), TernaryLinear(64, 16, config=config))


PLAN = {"0": TernaryColwiseParallel, "2": TernaryRowwiseParallel}
TRAINED = {
    "channel": TernaryQuantConfig(),
    "absmean tensor": TernaryQuantConfig(method="absmean", granularity="tensor"),
    "group": TernaryQuantConfig(granularity="group", group_size=16),
    "8 bits": TernaryQuantConfig(activation_bits=8),
    "16 bits": TernaryQuantConfig(activation_bits=16),
    "clipped": TernaryQuantConfig(ste="clipped"),
    "one group a process": TernaryQuantConfig(granularity="group", group_size=32, activation_bits=8, ste="clipped"),
}


def parallel(made: nn.Sequential) -> nn.Sequential:
    parallelize_module(made, mesh(), {name: style() for name, style in PLAN.items()})
    return made


def whole_of(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def assert_gradients(actual: nn.Module, expected: nn.Module, name: str) -> None:
    for (key, found), (_, wanted) in zip(actual.named_parameters(), expected.named_parameters(), strict=True):
        assert found.grad is not None, key
        error = helpers.relative_l2(whole_of(found.grad), wanted.grad)
        assert error <= GRADIENT, f"{name}, {key}: {error:.1e}"


@check
def training_has_the_gradients_of_one_process() -> None:
    for name, config in TRAINED.items():
        single, shared = net(config), parallel(net(config))
        assert isinstance(shared[0].weight, DTensor)
        assert shared[2].weight.to_local().shape == (16, 32)
        x, wanted = helpers.randn(5, 32), helpers.randn(5, 16)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        for model, own in zip((single, shared), inputs, strict=True):
            nn.functional.mse_loss(model(own), wanted).backward()
        assert_gradients(shared, single, name)
        assert helpers.relative_l2(inputs[1].grad, inputs[0].grad) <= GRADIENT, name
        optimizers = [torch.optim.AdamW(model.parameters(), 0.01) for model in (single, shared)]
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            assert helpers.relative_l2(shared(x), single(x)) <= 1e-4, name


@check
def training_in_eval_has_the_bits_of_one_process() -> None:
    for name in ("8 bits", "16 bits"):
        single = net(TRAINED[name]).eval()
        assert torch.equal(parallel(net(TRAINED[name])).eval()(tokens(32)), single(tokens(32)))


@check
def adapters_beside_packed_layers_get_gradients() -> None:
    whole = bittorch.export_for_inference(net(TRAINED["8 bits"]).eval())
    shared = parallel(copy.deepcopy(whole))
    inputs = [tokens(32).requires_grad_() for _ in range(2)]
    for model, own in zip((whole, shared), inputs, strict=True):
        model(own).square().sum().backward()
    assert helpers.relative_l2(inputs[1].grad, inputs[0].grad) <= GRADIENT


@check
def fully_shard_comes_after() -> None:
    both = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    single, shared = net(TRAINED["8 bits"]), net(TRAINED["8 bits"])
    parallelize_module(shared, both["tp"], {name: style() for name, style in PLAN.items()})
    fully_shard(shared, mesh=both["dp"])
    for model in (single, shared):
        model(helpers.randn(5, 32)).square().sum().backward()
    assert_gradients(shared, single, "fully_shard")


@check
def a_trained_model_is_exported_whole() -> None:
    single, shared = net(TRAINED["8 bits"]).eval(), parallel(net(TRAINED["8 bits"]).eval())
    exported = bittorch.export_for_inference(shared)
    assert type(exported[2]) is TernaryLinearInference
    assert torch.equal(exported(tokens(32)), single(tokens(32)))


@check
def what_cannot_be_cut_is_refused() -> None:
    grouped = TernaryQuantConfig(granularity="group", group_size=24)
    trits = TernaryQuantConfig(activation_bits="ternary")
    column, row = TernaryColwiseParallel, TernaryRowwiseParallel
    cases = [
        (packed(64, 25), column, ValueError, "out_features=25 is no multiple of 2 processes; use fewer"),
        (packed(68, 24), row, ValueError, "in_features=68 is no multiple of 2 processes x 4 codes a byte"),
        (packed(72, 24, grouped), row, ValueError, "in_features=72 is no multiple of 2 processes x 24 columns of a"),
        (layer(72, 24, grouped), row, ValueError, "in_features=72 is no multiple of 2 processes x 24 columns of a"),
        (layer(64, 24, TernaryQuantConfig(method="lsq")), column, ValueError, "that learns its scale"),
        (packed(64, 24, trits), row, ValueError, "tensor parallelism has no activation_bits='ternary'"),
        (layer(64, 24, trits), column, ValueError, "tensor parallelism has no activation_bits='ternary'"),
        (nn.Linear(64, 24), row, TypeError, "got Linear; torch's ColwiseParallel and RowwiseParallel take nn.Linear"),
    ]
    for module, style, error, message in cases:
        with pytest.raises(error, match=message):
            applied(module, style())
    for module in (packed(64, 24), layer(64, 24)):
        cut = applied(module, column())
        for style in (column, row):
            with pytest.raises(ValueError, match="parallel already"):
                applied(cut, style())
    flat = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    with pytest.raises(ValueError, match=r"a mesh of one dimension is needed, got 2 .*mesh\['tp'\]"):
        column()._apply(packed(64, 24), flat)


@check
def what_does_not_fit_is_refused() -> None:
    whole = packed(64, 24, TernaryQuantConfig(activation_bits=8))
    rows = applied(copy.deepcopy(whole), TernaryRowwiseParallel())
    assert isinstance(rows, RowParallelInference)
    assert "process 0 of 2" in repr(rows) or "process 1 of 2" in repr(rows)
    with pytest.raises(ValueError, match=r"input must be \(..., 32\), got \(2, 3, 64\)"):
        rows(tokens(64))
    with pytest.raises(RuntimeError, match="save the model before it is made parallel"):
        nn.Sequential(rows).state_dict()
    with pytest.raises(ValueError, match="norm_weight goes with activation_bits"):
        row_parallel_linear(mine(tokens(64)), rows.weight_packed, rows.scale, norm_weight=torch.ones(64))
    with pytest.raises(NotImplementedError, match="no gradient through a norm"):
        rows(mine(tokens(64)).requires_grad_(), nn.RMSNorm(64))
    with pytest.raises(ValueError, match="more than 32-bit sums"):
        row_parallel_linear(
            torch.ones(1, 1 << 22),
            torch.zeros(6, 1 << 20, dtype=torch.uint8),
            torch.ones(6),
            activation_bits=8,
            depth=6,
        )
    x, w = mine(tokens(64)), rows.weight_packed
    for bias, scale, error, message in (
        (None, rows.scale.half(), TypeError, "scale must be float32, got torch.float16"),
        (None, torch.ones(()), ValueError, r"scale must be \(24,\) or \(24, groups\), or \(1,\) at depth 1; got \(\)"),
        (torch.ones(1), rows.scale, ValueError, r"bias must be \(24,\) for out_features=24, got \(1,\)"),
    ):
        with pytest.raises(error, match=message):
            row_parallel_linear(x, w, scale, bias, activation_bits=8)
    assert row_parallel_linear(x[0, 0], w, rows.scale, activation_bits=8).shape == (24,)
    assert row_parallel_linear(x[:, :0], w, rows.scale, activation_bits=8).shape == (2, 0, 24)
    training = parallel(net(TRAINED["channel"]))
    training[0].quant_lambda = 0.5
    with pytest.raises(NotImplementedError, match="leave quant_lambda at 1"):
        training(tokens(32))
    sharded = distribute_tensor(tokens(64), mesh(), [Shard(2)])
    with pytest.raises(NotImplementedError, match="do not take a DTensor"):
        rows(sharded)


@check
def packed_ops_take_distributed_tensors() -> None:
    whole, wide = packed(64, 24, TernaryQuantConfig(activation_bits=8)), packed(256, 24)
    x, w, s, b = tokens(64), whole.weight_packed, whole.scale, whole.bias
    place = lambda t, *at: distribute_tensor(t, mesh(), list(at))  # noqa: E731
    every, rows, columns = Replicate(), Shard(0), Shard(1)
    for op, options in (
        (bittorch.ops.ternary_linear_packed, {}),
        (bittorch.ops.ternary_linear_w2a8, {"activation_bits": 24}),
        (bittorch.ops.ternary_linear_w2a8, {"norm_weight": torch.ones(64)}),
    ):
        expected = op(x, w, s, b, **options)
        own = {k: place(v, every) if isinstance(v, Tensor) else v for k, v in options.items()}
        by_outputs = op(place(x, every), place(w, rows), place(s, rows), place(b, rows), **own)
        assert by_outputs.placements == (Shard(2),)
        by_tokens = op(place(x, Shard(0)), place(w, every), place(s, every), place(b, every), **own)
        assert by_tokens.placements == (Shard(0),)
        for y in (by_outputs, by_tokens):
            assert torch.equal(y.full_tensor(), expected)
    codes, x_scale = bittorch.ops.act_quantize(x)
    given = {"x_scale": place(x_scale, every), "out_dtype": torch.float32}
    y = bittorch.ops.ternary_linear_w2a8(place(codes, Shard(0)), place(w, rows), place(s, rows), **given)
    assert torch.equal(y.full_tensor(), bittorch.ops.ternary_linear_w2a8(x, w, s))
    long = tokens(256)
    y = bittorch.ops.ternary_linear_packed(
        place(long, Shard(2)), place(wide.weight_packed, columns), place(wide.scale, every)
    )
    assert y.placements == (Partial(),)
    whole_sum = bittorch.ops.ternary_linear_packed(long, wide.weight_packed, wide.scale)
    assert 0 < helpers.relative_l2(y.full_tensor(), whole_sum) <= FLOAT
    odd = packed(68, 24)  # 17 bytes, which do not lie as 68 floats do
    cut = place(tokens(68), Shard(2)), place(odd.weight_packed, columns), place(odd.scale, every)
    expected = bittorch.ops.ternary_linear_packed(tokens(68), odd.weight_packed, odd.scale)
    assert torch.equal(bittorch.ops.ternary_linear_packed(*cut).full_tensor(), expected)
    one = torch.full((1,), 0.5)
    for scale, placed in ((s, place(s, rows)), (one, place(one, every)), (None, None)):
        dense = bittorch.ops.ternary_unpack(place(w, rows), placed, 64, torch.float32)
        assert dense.placements == (Shard(0),)
        assert torch.equal(dense.full_tensor(), bittorch.ops.ternary_unpack(w, scale, 64, torch.float32))


@check
def a_pipeline_trains_as_one_process() -> None:
    rank, single, parts = dist.get_rank(), net(TRAINED["8 bits"]), net(TRAINED["8 bits"])
    x, wanted = helpers.randn(8, 32), helpers.randn(8, 16)
    expected = single(x)
    nn.functional.mse_loss(expected, wanted).backward()
    stage = PipelineStage(parts[:2] if rank == 0 else parts[2:], rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, 4, loss_fn=nn.functional.mse_loss)
    actual = schedule.step(x) if rank == 0 else schedule.step(target=wanted)
    assert rank == 0 or torch.equal(actual, expected)
    assert helpers.relative_l2(parts[2 * rank].weight.grad, single[2 * rank].weight.grad) <= GRADIENT


@check
def the_guide_runs() -> None:
    text = (Path(bittorch.__file__).parents[1] / "docs" / "guide" / "distributed.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(block.replace("dist.destroy_process_group()", ""), {})


if __name__ == "__main__":
    two_processes.run(CHECKS)
