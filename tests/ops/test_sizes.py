"""Sizes and steps at the ends of int64: torch's value or an error, on every path; never memory that is not ours."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bittorch import TernaryConv2d, export_for_inference, ops
from bittorch.ops import reference
from tests import helpers

FLOAT_VARIANTS = [*helpers.variants("ternary_conv2d_packed", torch.float32), "unfold"]
INT8_VARIANTS = [*helpers.variants("ternary_conv2d_packed", "int8"), "unfold"]
Pair = tuple[int, int]
NO_MEMORY = r"(?i)overflow|can't allocate|must be below 2\^63"

# kernel_size, stride, padding, dilation; x is 5 x 6. Results are small, but some padded inputs exceed any memory.
ODD: dict[str, tuple[Pair, Pair, Pair, Pair]] = {
    "padding 2^30": ((1, 1), (2**30, 2**30), (2**30 - 1, 2**30 - 1), (1, 1)),
    "padding 2^31": ((1, 1), (2**31, 2**31), (2**31 - 1, 2**31 - 1), (1, 1)),
    "padding 2^32, one side": ((1, 3), (1, 2**28), (0, 2**32), (1, 1)),
    "padding 2^61": ((1, 1), (2**61, 2**61), (2**61 - 3, 2**61 - 2), (1, 1)),
    "padding beyond the image": ((3, 2), (200, 170), (1999, 2000), (1, 3)),
    "stride 2^63 - 1": ((3, 3), (2**63 - 1, 2**63 - 1), (1, 1), (1, 1)),
    "dilation 2^63 - 1 of one tap": ((1, 1), (1, 1), (0, 0), (2**63 - 1, 2**63 - 1)),
    "dilation 2^40": ((3, 2), (1, 1), (2**40, 2**39), (2**40 - 1, 2**40 - 3)),
    "dilation 2^61": ((3, 3), (1, 1), (2**61, 2**61), (2**61, 2**61)),
}

TOO_LARGE: dict[str, tuple[Pair, Pair, Pair, Pair]] = {
    "padding 2^62": ((1, 1), (2**62, 2**62), (2**62 - 1, 2**62 - 1), (1, 1)),
    "padding 2^63 - 1": ((1, 1), (1, 1), (0, 2**63 - 1), (1, 1)),
    "padding 2^63 - 100000": ((1, 1), (1, 1), (0, 2**63 - 100000), (1, 1)),
    "dilation 2^62 of three taps": ((3, 3), (1, 1), (0, 0), (2**62, 2**62)),
    "dilation 2^63 - 1 of two taps": ((2, 1), (1, 1), (0, 0), (2**63 - 1, 1)),
}


def _filters(kernel: Pair, channels: int = 4, groups: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, packed rows and scales of six filters."""
    codes = helpers.random_codes(6, channels // groups * kernel[0] * kernel[1])
    return codes, helpers.pack(codes), helpers.random_scale(helpers.CHANNEL, 6, codes.shape[1])


@helpers.each("name", ODD)
@helpers.each("variant", FLOAT_VARIANTS)
def test_odd_steps_give_the_value_of_torch(name: str, variant: str) -> None:
    """FIELD R1: unchecked products of sizes read foreign memory."""
    kernel, *steps = ODD[name]
    codes, w_packed, scale = _filters(kernel)
    x = helpers.randn(2, 4, 5, 6)
    weight = helpers.dense(codes, scale).view(6, 2, *kernel)
    expected = functional.conv2d(x.double(), weight, None, *steps, groups=2)
    arguments = x, w_packed, scale, None, kernel, *steps, 2
    y = ops.ternary_conv2d_packed(*arguments, variant=variant)
    helpers.assert_near(y, expected, 1e-6)
    if variant != "unfold":
        assert torch.equal(y, ops.ternary_conv2d_packed(*arguments, variant="scalar"))


@helpers.each("name", ODD)
@helpers.each("variant", INT8_VARIANTS)
@helpers.each("bits", [8, 16, 24])
def test_odd_steps_give_the_integers_of_the_reference(name: str, variant: str, bits: int) -> None:
    kernel, *steps = ODD[name]
    _, w_packed, scale = _filters(kernel)
    x = helpers.randn(3, 4, 5, 6, seed=2)
    x[1, 2, 4, 5] = 50.0  # sets the scale of its sample, in a patch or not
    arguments = x, w_packed, scale, helpers.randn(6), kernel, *steps, 2
    expected = reference.ternary_conv2d_packed(*arguments, activation_bits=bits)
    helpers.assert_same_bits(ops.ternary_conv2d_packed(*arguments, activation_bits=bits, variant=variant), expected)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
def test_odd_steps_of_halves(name: str, dtype: torch.dtype) -> None:
    kernel, *steps = ODD[name]
    _, w_packed, scale = _filters(kernel)
    arguments = helpers.randn(2, 4, 5, 6, dtype=dtype), w_packed, scale, None, kernel, *steps, 2
    helpers.assert_near(ops.ternary_conv2d_packed(*arguments), reference.ternary_conv2d_packed(*arguments))


@pytest.mark.parametrize("name", ODD)
def test_odd_steps_have_the_fake_of_their_result(name: str) -> None:
    kernel, *steps = ODD[name]
    _, w_packed, scale = _filters(kernel)
    arguments = torch.ones(2, 4, 5, 6), w_packed, scale, None, kernel, *steps, 2
    fake = ops.ternary_conv2d_packed(*(t.to("meta") if isinstance(t, Tensor) else t for t in arguments))
    assert fake.shape == ops.ternary_conv2d_packed(*arguments).shape


@helpers.each("way", ["auto", "unfold", "reference", "reference layer", "fake"])
@helpers.each("name", TOO_LARGE)
def test_sizes_beyond_int64_are_refused(name: str, way: str) -> None:
    """torch's own convolution gives a value for some of them, after its sizes have wrapped around."""
    kernel, *steps = TOO_LARGE[name]
    _, w_packed, scale = _filters(kernel)
    arguments = torch.ones(2, 4, 5, 6), w_packed, scale, None, kernel, *steps, 2
    ways = {
        "reference": lambda: reference.ternary_conv2d_packed(*arguments),
        "reference layer": lambda: reference.ternary_conv2d(
            arguments[0], torch.ones(6, 2, *kernel), None, *steps, 2, "max", "ls", 0.05, "channel"
        ),
        "fake": lambda: ops.ternary_conv2d_packed(*(t.to("meta") if isinstance(t, Tensor) else t for t in arguments)),
    }
    run = ways.get(way, lambda: ops.ternary_conv2d_packed(*arguments, variant=way))
    with pytest.raises(ValueError, match=r"must be below 2\^63|smaller than the kernel"):
        run()


@pytest.mark.parametrize("padding", [(2**20, 2**30), (2**30, 2**31)], ids=str)
def test_a_result_that_no_memory_holds_is_refused(padding: Pair) -> None:
    _, w_packed, scale = _filters((1, 1))
    with pytest.raises((RuntimeError, ValueError), match=NO_MEMORY):
        ops.ternary_conv2d_packed(torch.ones(2, 4, 5, 6), w_packed, scale, None, (1, 1), (1, 1), padding, groups=2)


@pytest.mark.parametrize("backend", ["auto", "python"])
def test_layer_with_impossible_padding_is_refused_when_it_runs(backend: str) -> None:
    layer = TernaryConv2d(1, 1, 1, padding=(0, 2**63 - 100000), backend=backend)
    with pytest.raises(ValueError, match=r"must be below 2\^63"):
        layer(torch.ones(1, 1, 2, 2))


@pytest.mark.slow
def test_layer_with_odd_steps_trains_and_exports() -> None:
    layer = TernaryConv2d(2, 3, 1, stride=2**30, padding=2**30 - 1)
    x = helpers.randn(2, 2, 2, 2).requires_grad_()
    y = layer(x)
    assert y.shape == (2, 3, 2, 2)
    y.sum().backward()
    read = torch.zeros_like(x)
    read[:, :, 1, 1] = layer.dequantized_weight()[:, :, 0, 0].sum(0)  # the one pixel that any patch holds
    helpers.assert_near(x.grad, read.double())
    assert torch.equal(export_for_inference(layer.eval())(x), layer(x))


@pytest.mark.parametrize("bits", [0, 8, 24])
@pytest.mark.parametrize("variant", ["auto", "unfold"])
def test_an_image_of_padding_alone_is_the_bias(bits: int, variant: str) -> None:
    _, w_packed, scale = _filters((3, 3))
    bias = helpers.randn(6)
    for size in ((0, 4), (3, 0), (0, 0)):
        y = ops.ternary_conv2d_packed(
            torch.ones(2, 4, *size), w_packed, scale, bias, (3, 3), (1, 1), (3, 3), groups=2, activation_bits=bits,
            variant=variant,
        )  # fmt: skip
        assert torch.equal(y, bias[:, None, None].expand_as(y))


# FIELD R13: empty results with a huge other dimension took a loop over its rows.

HUGE = 2**62


def test_packing_empty_rows_is_done_at_once() -> None:
    assert ops.ternary_pack(torch.empty(HUGE, 0, dtype=torch.int8)).shape == (HUGE, 0)
    assert ops.ternary_pack(torch.empty(0, HUGE, dtype=torch.int8)).shape == (0, HUGE // 4)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("shape", [(1 << 24, 0), (0, HUGE)], ids=str)
def test_quantising_nothing_is_done_at_once(shape: tuple[int, int], granularity: str) -> None:
    arguments = torch.empty(shape), "max", "ls", 0.05, granularity, 4
    for actual, expected in zip(ops.ternary_quantize(*arguments), reference.ternary_quantize(*arguments), strict=True):
        assert actual.shape == expected.shape
        assert torch.equal(actual, expected)


def test_quantising_empty_rows_to_one_scale_is_done_at_once() -> None:
    w_packed, scale = ops.ternary_quantize(torch.empty(HUGE, 0), "optimal", "ls", 0.0, "tensor")
    assert (w_packed.shape, scale.tolist()) == ((HUGE, 0), [torch.tensor(1e-5).item()])


@pytest.mark.parametrize(("rows", "columns"), [(HUGE, 0), (0, HUGE), (0, 2**63 - 1), (HUGE, 3)], ids=str)
def test_unpacking_and_transposing_nothing_is_done_at_once(rows: int, columns: int) -> None:
    if rows and columns:  # one byte per row, of a matrix that no memory holds
        w_packed = torch.zeros(1, 1, dtype=torch.uint8).expand(rows, 1)
        with pytest.raises(RuntimeError, match=NO_MEMORY):
            ops.ternary_unpack(w_packed, None, columns, torch.float32)
        return
    w_packed = torch.empty(rows, -(-columns // 4), dtype=torch.uint8)
    assert ops.ternary_unpack(w_packed, None, columns, torch.int8).shape == (rows, columns)
    assert ops.ternary_transpose(w_packed, columns).shape == (columns, rows // 4)


@pytest.mark.parametrize("shape", [(HUGE, 0), (1 << 20, 1 << 20, 0)], ids=str)
@pytest.mark.parametrize("op", [ops.ternary_linear_packed, ops.ternary_linear_w2a8], ids=lambda op: op.__name__)
def test_products_without_a_result_are_done_at_once(op: object, shape: tuple[int, ...]) -> None:
    no_rows = torch.empty(0, 0, dtype=torch.uint8)
    assert op(torch.empty(shape), no_rows, torch.ones(1)).shape == shape
    with pytest.raises(RuntimeError, match=NO_MEMORY):
        op(torch.empty(shape), torch.empty(1 << 20, 0, dtype=torch.uint8), torch.ones(1))


def test_quantising_no_activations_is_done_at_once() -> None:
    q, scale = ops.act_quantize(torch.empty(0, HUGE))
    assert (q.shape, scale.shape) == ((0, HUGE), (0, 1))


# FIELD R14: zero as a divisor.


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("group_size", "message"), [(0, "positive multiple of 4, got 0"), (12, "must divide in_feat")])
def test_group_sizes_that_do_not_divide_are_refused(device: str, group_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.ternary_quantize(torch.ones(4, 16, device=device), "max", "ls", 0.05, "group", group_size)
    with pytest.raises(ValueError, match=message):
        reference.ternary_quantize(torch.ones(4, 16), "max", "ls", 0.05, "group", group_size)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": (1, 0)}, r"stride must be two integers of at least 1, got \[1, 0\]"),
        ({"dilation": (0, 1)}, r"dilation must be two integers of at least 1, got \[0, 1\]"),
        ({"padding": (0, -1)}, r"padding must be two integers of at least 0, got \[0, -1\]"),
        ({"kernel_size": (0, 3)}, r"kernel_size must be two integers of at least 1, got \[0, 3\]"),
        ({"groups": 0}, "groups must divide channels and out_channels, got groups=0, 4 channels"),
        ({"x": (2, 4, 1, 6)}, "the padded input is smaller than the kernel"),
        ({"x": (4, 5, 6)}, r"x must be \(samples, channels, height, width\), got"),
        ({"x": (2, 3, 5, 6)}, "groups must divide channels"),
    ],
    ids=str,
)
def test_steps_that_are_none_are_refused(device: str, change: dict[str, object], message: str) -> None:
    _, w_packed, scale = _filters((3, 3))
    good = {"x": (2, 4, 5, 6), "kernel_size": (3, 3), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    arguments = {**good, "groups": 2, "bias": None, **change}
    arguments["x"] = torch.ones(arguments["x"], device=device)
    with pytest.raises(ValueError, match=message):
        ops.ternary_conv2d_packed(w_packed=w_packed.to(device), scale=scale.to(device), **arguments)
