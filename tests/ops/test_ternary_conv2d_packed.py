import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bittorch import ops
from bittorch.ops import reference
from tests import helpers
from tests.helpers import CHANNEL, GRANULARITIES, TENSOR, Granularity

BITS = (8, 16, 24)
FLOAT_VARIANTS = helpers.variants("ternary_conv2d_packed", torch.float32)
INT8_VARIANTS = helpers.variants("ternary_conv2d_packed", "int8")

# channels, height, width, out_channels, kernel, stride, padding, dilation, groups
GEOMETRIES = {
    "3x3": (3, 12, 12, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stride 2": (8, 9, 10, 5, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "all different": (6, 11, 17, 8, (2, 5), (3, 2), (2, 4), (2, 3), 2),
    "depthwise": (8, 7, 7, 8, (3, 3), (1, 1), (0, 0), (1, 1), 8),
    "1x1": (16, 5, 6, 7, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1 stride 2": (16, 5, 6, 7, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "stride beyond the kernel": (4, 20, 21, 3, (2, 2), (5, 4), (1, 3), (1, 1), 1),
    "one position": (4, 3, 3, 3, (3, 3), (7, 7), (0, 0), (1, 1), 1),
    "padding alone": (4, 1, 1, 3, (3, 3), (1, 1), (2, 2), (1, 1), 1),
    "many filters": (64, 8, 8, 70, (3, 3), (1, 1), (1, 1), (1, 1), 1),
}
Geometry = tuple[int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], int]


class _Problem:
    """Random packed filters for one geometry."""

    def __init__(
        self, geometry: Geometry, granularity: Granularity = CHANNEL, bias: torch.dtype | None = torch.float32
    ) -> None:
        self.channels, self.height, self.width, n, self.kernel, *steps, groups = geometry
        self.steps, self.groups = steps, groups
        k = self.channels // groups * self.kernel[0] * self.kernel[1]
        self.codes = helpers.random_codes(n, k)
        self.scale = helpers.random_scale(granularity, n, k)
        self.bias = None if bias is None else helpers.randn(n, seed=5).to(bias)
        self.arguments = helpers.pack(self.codes), self.scale, self.bias, self.kernel, *steps, groups
        self.weight = helpers.dense(self.codes, self.scale).view(n, self.channels // groups, *self.kernel)

    def x(self, samples: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        return helpers.randn(samples, self.channels, self.height, self.width, seed=seed, dtype=dtype)

    def run(self, x: Tensor, bits: int = 0, variant: str = "auto") -> Tensor:
        return ops.ternary_conv2d_packed(x, *self.arguments, activation_bits=bits, variant=variant)

    def exact(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return functional.conv2d(x.double(), self.weight, bias, *self.steps, self.groups)


@helpers.each("geometry", GEOMETRIES)
@helpers.each("variant", [*FLOAT_VARIANTS, "unfold"])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_floats_are_near_the_float64_convolution(geometry: str, variant: str, dtype: torch.dtype) -> None:
    problem = _Problem(GEOMETRIES[geometry])
    x = problem.x(dtype=dtype)
    y = problem.run(x, variant=variant)
    assert (y.dtype, y.is_contiguous()) == (dtype, True)
    helpers.assert_near(y, problem.exact(x), 1e-6 if dtype == torch.float32 else None)
    if variant != "unfold":
        assert torch.equal(y, problem.run(x, variant="scalar"))


@helpers.each("geometry", GEOMETRIES)
@helpers.each("variant", [*INT8_VARIANTS, "unfold"])
@helpers.each("bits", BITS)
def test_integers_are_exact(geometry: str, variant: str, bits: int) -> None:
    for dtype in helpers.FLOATS:
        problem = _Problem(GEOMETRIES[geometry])
        x = problem.x(dtype=dtype)
        expected = reference.ternary_conv2d_packed(x, *problem.arguments, activation_bits=bits)
        helpers.assert_same_bits(problem.run(x, bits, variant), expected)


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL, Granularity("group", 4), Granularity("group", 24)], ids=str)
@pytest.mark.parametrize("bias", [None, *helpers.FLOATS], ids=helpers.dtype_id)
def test_every_granularity_and_bias(granularity: Granularity, bias: torch.dtype | None) -> None:
    problem = _Problem((16, 6, 7, 8, (3, 3), (1, 1), (1, 1), (1, 1), 2), granularity, bias)
    x = problem.x()
    for variant in [*FLOAT_VARIANTS, "unfold"]:
        helpers.assert_near(problem.run(x, variant=variant), problem.exact(x), 1e-6)
    for bits in BITS:
        expected = reference.ternary_conv2d_packed(x, *problem.arguments, activation_bits=bits)
        for variant in [*INT8_VARIANTS, "unfold"]:
            helpers.assert_same_bits(problem.run(x, bits, variant), expected)


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (16, 1e-4), (24, 4e-7)])
def test_integers_are_near_the_floating_convolution(bits: int, tolerance: float) -> None:
    problem = _Problem(GEOMETRIES["many filters"])
    x = problem.x()
    helpers.assert_near(problem.run(x, bits), problem.exact(x), tolerance)


@pytest.mark.parametrize("bits", [0, *BITS])
def test_sample_of_a_batch_equals_the_sample_alone(bits: int) -> None:
    problem = _Problem(GEOMETRIES["all different"])
    x = problem.x(5)
    batch = problem.run(x, bits)
    for sample in range(5):
        assert torch.equal(problem.run(x[sample : sample + 1], bits), batch[sample : sample + 1])


@pytest.mark.parametrize("bits", [0, 8, 24])
def test_batch_beyond_the_scratch_equals_its_parts(bits: int) -> None:
    problem = _Problem((8, 64, 64, 3, (3, 3), (2, 2), (1, 1), (1, 1), 1))
    x = problem.x(130)
    parts = [problem.run(part, bits) for part in x.split(9)]
    assert torch.equal(problem.run(x, bits), torch.cat(parts))


@pytest.mark.parametrize("bits", [0, *BITS])
@pytest.mark.parametrize("variant", ["tiled", "baseline"])
def test_two_threads_give_the_bits_of_one(bits: int, variant: str) -> None:
    problem = _Problem((16, 32, 31, 130, (3, 3), (1, 1), (1, 1), (1, 1), 2))
    x = problem.x()
    with helpers.threads(1):
        one = problem.run(x, bits, variant)
    with helpers.threads(2):
        assert torch.equal(problem.run(x, bits, variant), one)


@pytest.mark.parametrize("bits", [0, *BITS])
def test_layouts_of_the_operands_do_not_matter(bits: int) -> None:
    problem = _Problem(GEOMETRIES["3x3"])
    x = problem.x()
    w_packed, scale, bias, *rest = problem.arguments
    expected = problem.run(x, bits)
    channels_last = x.to(memory_format=torch.channels_last)
    for layout in helpers.LAYOUTS.values():
        operands = layout(w_packed), layout(scale), layout(bias)
        for given in (channels_last, layout(x)):
            assert torch.equal(ops.ternary_conv2d_packed(given, *operands, *rest, activation_bits=bits), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_sample_is_nan_with_integers(value: float) -> None:
    problem = _Problem(GEOMETRIES["3x3"])
    x = problem.x(3)
    dirty = x.clone()
    dirty[1, 2, 11, 11] = value
    for bits in BITS:
        for variant in [*INT8_VARIANTS, "unfold"]:
            y = problem.run(dirty, bits, variant)
            assert y[1].isnan().all()
            assert torch.equal(y[::2], problem.run(x, bits, variant)[::2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_spread_as_in_conv2d(value: float) -> None:
    problem = _Problem(GEOMETRIES["3x3"])
    x = problem.x()
    x[0, 1, 5, 6] = value
    for variant in FLOAT_VARIANTS:
        y, expected = problem.run(x, variant=variant), functional.conv2d(x, problem.weight.float(), None, 1, 1)
        assert torch.equal(y.isnan(), expected.isnan())


@pytest.mark.parametrize("bits", [0, *BITS])
@pytest.mark.parametrize("variant", ["auto", "unfold"])
def test_empty_batch_gives_an_empty_result(bits: int, variant: str) -> None:
    problem = _Problem(GEOMETRIES["stride 2"])
    x = problem.x(0)
    assert problem.run(x, bits, variant).shape == problem.exact(x).shape


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("magnitude", [0.0, 1e-44, 1e-30, 3e38])
def test_integers_of_any_magnitude(bits: int, magnitude: float) -> None:
    problem = _Problem(GEOMETRIES["3x3"])
    x = problem.x()
    x = x / x.abs().amax() * magnitude
    expected = reference.ternary_conv2d_packed(x, *problem.arguments, activation_bits=bits)
    helpers.assert_same_bits(problem.run(x, bits), expected)


# Gradients


@helpers.each("geometry", GEOMETRIES)
@helpers.each("bits", [0, *BITS])
def test_gradients_are_straight_through(geometry: str, bits: int) -> None:
    problem = _Problem(GEOMETRIES[geometry])
    x = problem.x().requires_grad_()
    problem.bias.requires_grad_()
    y = problem.run(x, bits)
    g = helpers.randn(*y.shape, seed=9)
    y.backward(g)
    wide = x.detach().double().requires_grad_()
    functional.conv2d(wide, problem.weight, None, *problem.steps, problem.groups).backward(g.double())
    helpers.assert_near(x.grad, wide.grad)
    helpers.assert_near(problem.bias.grad, g.double().sum((0, 2, 3)))


@pytest.mark.parametrize("end", [torch.sum, lambda t: t.square().sum()], ids=["sum", "square"])
def test_double_backward_raises(end: object) -> None:
    problem = _Problem(GEOMETRIES["3x3"])
    x = problem.x().requires_grad_()
    (grad,) = torch.autograd.grad(problem.run(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        end(grad).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
@pytest.mark.parametrize("bits", [0, 8])
def test_autocast_casts_x_only(dtype: torch.dtype, bits: int) -> None:
    problem = _Problem(GEOMETRIES["3x3"])
    x = problem.x()
    with torch.autocast("cpu", dtype=dtype):
        y = problem.run(x, bits)
    assert torch.equal(y, problem.run(x.to(dtype), bits))


# Arguments


@helpers.each(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 5, 5)}, ValueError, r"x must be \(samples, channels, height, width\), got \[4, 5, 5\]"),
        ({"x": torch.zeros(1, 3, 5, 5)}, ValueError, "groups=2, 3 channels in x"),
        ({"x": torch.zeros(1, 6, 5, 5)}, ValueError, r"for in_features=27, got \[6, 5\]"),
        ({"x": torch.zeros(1, 4, 5, 5, dtype=torch.int64)}, TypeError, "x must be float32, float16 or bfloat16, got"),
        ({"x": torch.zeros(1, 4, 5, 5, dtype=torch.complex64)}, TypeError, "x must be float32, float16 or bfloat16"),
        (
            {"x": torch.zeros(1, 4, 2, 5)},
            ValueError,
            r"\[1, 4, 2, 5\] with padding \[0, 0\] against kernel_size \[3, 3",
        ),
        ({"padding": (-1, 0)}, ValueError, r"padding must be two integers of at least 0, got \[-1, 0\]"),
        ({"stride": (1, 0)}, ValueError, r"stride must be two integers of at least 1, got \[1, 0\]"),
        ({"dilation": (0, 1)}, ValueError, r"dilation must be two integers of at least 1, got \[0, 1\]"),
        ({"kernel_size": (0, 3)}, ValueError, r"kernel_size must be two integers of at least 1, got \[0, 3\]"),
        ({"groups": 3}, ValueError, "groups=3, 4 channels in x"),
        ({"groups": 0}, ValueError, "groups=0"),
        ({"groups": 4}, ValueError, "groups must divide channels and out_channels, got groups=4"),
        ({"w_packed": torch.zeros(6, 4, dtype=torch.uint8)}, ValueError, r"w_packed must be \(out_features, 5\)"),
        ({"w_packed": torch.zeros(6, 5)}, TypeError, "w_packed must be uint8"),
        ({"scale": torch.ones(5)}, ValueError, "scale must be"),
        ({"scale": torch.ones(6).half()}, TypeError, "scale must be float32"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must be \(6,\)"),
        ({"activation_bits": 4}, ValueError, "activation_bits must be 8, 16 or 24, got 4"),
        ({"variant": "nosuch"}, ValueError, "no kernel 'nosuch' here; one of"),
    ],
    ids=lambda value: (
        " ".join(f"{k} {getattr(v, 'shape', v)}" for k, v in value.items()) if type(value) is dict else ""
    ),
)
def test_bad_arguments_are_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {
        "x": torch.zeros(1, 4, 5, 5),
        "w_packed": torch.zeros(6, 5, dtype=torch.uint8),
        "scale": torch.ones(6),
        "bias": torch.zeros(6),
        "kernel_size": (3, 3),
        "groups": 2,
    }
    ops.ternary_conv2d_packed(**good)
    with pytest.raises(error, match=message):
        ops.ternary_conv2d_packed(**{**good, **change})


def test_a_huge_stride_costs_nothing() -> None:
    problem = _Problem((4, 3, 5, 3, (3, 3), (1 << 40, 1 << 40), (0, 1), (1, 1), 1))
    x = problem.x()
    helpers.assert_near(problem.run(x), functional.conv2d(x.double(), problem.weight, problem.bias.double(), 9, (0, 1)))


@pytest.mark.parametrize(("bits", "bias", "requires_grad"), helpers.pairs([0, *BITS]))
def test_op_passes_opcheck(bits: int, bias: bool, requires_grad: bool) -> None:
    problem = _Problem(GEOMETRIES["all different"], GRANULARITIES[1], torch.float32 if bias else None)
    x = problem.x().requires_grad_(requires_grad)
    op = torch.ops.bittorch.ternary_conv2d_packed.default
    torch.library.opcheck(op, (x, *problem.arguments), {"activation_bits": bits})
