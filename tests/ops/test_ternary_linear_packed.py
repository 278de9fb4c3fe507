import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from bittorch import _C, ops
from bittorch.ops import reference
from tests import helpers
from tests.helpers import GRANULARITIES, Granularity

OP = "ternary_linear_packed"
VARIANTS = helpers.variants(OP, torch.float32)  # they take every floating type and give the same bits
BF16_VARIANTS = [name for name in helpers.variants(OP, torch.bfloat16) if name not in VARIANTS]
for_bf16 = pytest.mark.parametrize("bf16_variant", BF16_VARIANTS)


class _Problem(helpers.PackedWeights):
    def exact(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return linear(x.double(), helpers.dense(self.codes, self.scale), bias)

    def run(self, x: Tensor, variant: str = "auto") -> Tensor:
        return ops.ternary_linear_packed(x, self.packed, self.scale, self.bias, variant=variant)


def _assert_all_variants(problem: _Problem, x: Tensor) -> None:
    """Every kernel is near float64, and all but those for bfloat16 alone give the same bits."""
    results = [problem.run(x, variant) for variant in VARIANTS]
    exact = problem.exact(x)
    assert results[0].dtype == x.dtype
    helpers.assert_near(results[0], exact)
    for variant, result in zip(VARIANTS[1:], results[1:], strict=True):
        assert torch.equal(result, results[0]), f"{variant} differs from {VARIANTS[0]}"
    for variant in BF16_VARIANTS if x.dtype == torch.bfloat16 else []:
        helpers.assert_near(problem.run(x, variant), exact)
    helpers.assert_near(reference.ternary_linear_packed(x, problem.packed, problem.scale, problem.bias), exact)


@helpers.each("k", [*helpers.EDGE_SIZES, 1000])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_packed_is_near_float64_at_edge_sizes_of_k(dtype: torch.dtype, k: int) -> None:
    problem = _Problem(6, k, bias=torch.float32)
    for m in (1, 3):
        _assert_all_variants(problem, helpers.randn(m, k, dtype=dtype))


@pytest.mark.parametrize("n", helpers.EDGE_SIZES)
def test_packed_is_near_float64_at_edge_sizes_of_n(n: int) -> None:
    _assert_all_variants(_Problem(n, 37), helpers.randn(2, 37))


@pytest.mark.parametrize("m", helpers.EDGE_SIZES)
def test_packed_is_near_float64_at_edge_sizes_of_m(m: int) -> None:
    _assert_all_variants(_Problem(5, 37), helpers.randn(m, 37))


@helpers.each("granularity", GRANULARITIES, ids=str)
@helpers.each("bias", [None, *helpers.FLOATS], ids=helpers.dtype_id)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_packed_with_every_granularity_and_bias(
    granularity: Granularity, bias: torch.dtype | None, dtype: torch.dtype
) -> None:
    _assert_all_variants(_Problem(9, 320, granularity, bias), helpers.randn(7, 320, dtype=dtype))


@pytest.mark.parametrize("k", [8, 12, 260])
def test_packed_uses_the_scale_of_each_group(variant: str, k: int) -> None:
    """Powers of two: exact, so that a wrong group shows as a wrong number."""
    codes, groups = torch.ones(3, k, dtype=torch.int8), k // 4
    scale = 2.0 ** torch.arange(3 * groups).view(3, groups).remainder(13)
    y = ops.ternary_linear_packed(torch.eye(k), helpers.pack(codes), scale, variant=variant)
    assert torch.equal(y, scale.repeat_interleave(4, 1).t())


def test_packed_of_identity_gives_the_weight(variant: str) -> None:
    problem = _Problem(70, 131)
    assert torch.equal(problem.run(torch.eye(131), variant), problem.exact(torch.eye(131)).float())


@pytest.mark.parametrize("shape", [(3,), (2, 3, 3), (0, 3), (2, 0, 3), (1, 1, 1, 3)], ids=str)
def test_packed_keeps_batch_shape(variant: str, shape: tuple[int, ...]) -> None:
    problem, x = _Problem(4, 3, bias=torch.float32), helpers.randn(*shape)
    y = problem.run(x, variant)
    assert y.shape == (*shape[:-1], 4)
    helpers.assert_near(y, problem.exact(x))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0)], ids=str)
def test_packed_of_empty_sizes_behaves_as_linear(variant: str, m: int, n: int, k: int) -> None:
    problem = _Problem(n, k, bias=torch.float32)
    expected = linear(torch.zeros(m, k), torch.zeros(n, k), problem.bias)
    assert torch.equal(problem.run(torch.zeros(m, k), variant), expected)


def test_packed_of_0_features() -> None:
    y = ops.ternary_linear_packed(torch.zeros(0), torch.zeros(4, 0, dtype=torch.uint8), torch.ones(4))
    assert torch.equal(y, torch.zeros(4))


@helpers.each("layout", helpers.LAYOUTS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_packed_of_layouts_equals_contiguous(variant: str, layout: str, dtype: torch.dtype) -> None:
    rearranged = helpers.LAYOUTS[layout]
    problem = _Problem(9, 72, Granularity("group", 8), dtype)
    x = helpers.randn(5, 72, dtype=dtype)
    expected = problem.run(x, variant)
    y = ops.ternary_linear_packed(
        rearranged(x), rearranged(problem.packed), rearranged(problem.scale), rearranged(problem.bias), variant=variant
    )
    assert torch.equal(y, expected)
    batch = x.expand(3, 5, 72)
    assert torch.equal(problem.run(rearranged(batch), variant), expected.expand(3, 5, 9))


def test_packed_of_expanded_operands(variant: str) -> None:
    problem = _Problem(1, 70)
    x = helpers.randn(1, 70)
    y = ops.ternary_linear_packed(
        x.expand(6, 70),
        problem.packed.expand(4, -1),
        torch.tensor(0.5).expand(4),
        torch.tensor(2.0).expand(4),
        variant=variant,
    )
    assert torch.equal(y, y[:1, :1].expand(6, 4))
    helpers.assert_near(y, (linear(x.double(), problem.codes.double()) * 0.5 + 2).expand(6, 4))


@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("granularity", GRANULARITIES, ids=str)
def test_packed_row_of_a_batch_equals_the_row_alone(variant: str, dtype: torch.dtype, granularity: Granularity) -> None:
    problem, x = _Problem(33, 320, granularity, dtype), helpers.randn(67, 320, dtype=dtype)
    batch = problem.run(x, variant)
    for row in (0, 1, 5, 31, 64, 66):
        assert torch.equal(problem.run(x[row], variant), batch[row])
    assert torch.equal(problem.run(x[3:50], variant), batch[3:50])


def test_packed_beyond_the_scratch_block_equals_its_parts(variant: str) -> None:
    """More tokens than are prepared at once."""
    problem, x = _Problem(3, 20), helpers.randn(2050, 20)
    parts = [problem.run(part, variant) for part in x.split(100)]
    assert torch.equal(problem.run(x, variant), torch.cat(parts))


@pytest.mark.parametrize("shape", [(1, 600, 1024), (300, 70, 512)], ids=["one token", "batch"])
def test_packed_with_two_threads_equals_one(variant: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    problem, x = _Problem(n, k, bias=torch.float32), helpers.randn(m, k)
    with helpers.threads(1):
        one = problem.run(x, variant)
    with helpers.threads(2):
        two = problem.run(x, variant)
    assert torch.equal(one, two)
    helpers.assert_near(one, problem.exact(x))


@helpers.each("value", [float("nan"), float("inf"), float("-inf")])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("column", [0, 30, 64])
def test_packed_has_the_nan_pattern_of_linear(variant: str, value: float, dtype: torch.dtype, column: int) -> None:
    """Zero codes multiply too: 0 * Inf is NaN."""
    problem, x = _Problem(40, 65), helpers.randn(5, 65, dtype=dtype)
    x[2, column] = value
    y, expected = problem.run(x, variant), problem.exact(x)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[y.isinf()].double(), expected[expected.isinf()])
    finite = [0, 1, 3, 4]
    helpers.assert_near(y[finite], expected[finite])


def test_packed_with_inf_of_both_signs_is_nan(variant: str) -> None:
    packed = helpers.pack(torch.tensor([[1, 1], [1, -1], [0, 1]], dtype=torch.int8))
    y = ops.ternary_linear_packed(torch.tensor([float("inf"), float("-inf")]), packed, torch.ones(1), variant=variant)
    assert y.isnan().tolist() == [True, False, True]
    assert y[1] == float("inf")


def test_packed_with_nan_scale_is_nan(variant: str) -> None:
    problem = _Problem(4, 9)
    problem.scale[1] = float("nan")
    y = problem.run(helpers.randn(3, 9), variant)
    assert y.isnan().tolist() == [[False, True, False, False]] * 3


def test_packed_of_subnormals(variant: str) -> None:
    problem, x = _Problem(8, 50), helpers.randn(4, 50) * 1e-40
    assert (problem.run(x, variant).double() - problem.exact(x)).abs().max() <= 50 * 2**-149
    assert problem.run(x, variant).any()


def test_packed_overflow_of_float16_is_inf(variant: str) -> None:
    packed = helpers.pack(torch.ones(1, 4, dtype=torch.int8))
    y = ops.ternary_linear_packed(torch.full((4,), 60000.0).half(), packed, torch.ones(1), variant=variant)
    assert y.tolist() == [float("inf")]


def test_packed_adds_the_bias_in_float32_before_the_cast(variant: str) -> None:
    """In float16 2048 + 1 is 2048, so two casts would give 2048 instead of 2050."""
    packed = helpers.pack(torch.tensor([[1, 1]], dtype=torch.int8))
    x = torch.tensor([2048.0, 1.0], dtype=torch.float16)
    y = ops.ternary_linear_packed(x, packed, torch.ones(1), torch.tensor([1.0]).half(), variant=variant)
    assert y.tolist() == [2050.0]


# Kernels for bfloat16 alone


@for_bf16
@pytest.mark.parametrize("group", [4, 20, 64, 128, 256, 512, 1280])
def test_bf16_kernel_with_every_group_size(bf16_variant: str, group: int) -> None:
    """Those that the kernel leaves to the scalar one are prepared in its order too."""
    problem, x = _Problem(9, 2560, Granularity("group", group)), helpers.randn(6, 2560, dtype=torch.bfloat16)
    helpers.assert_near(problem.run(x, bf16_variant), problem.exact(x))


@pytest.mark.slow
@for_bf16
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_bf16_kernel_row_of_a_batch_equals_the_row_alone(bf16_variant: str, granularity: Granularity) -> None:
    problem, x = _Problem(70, 320, granularity), helpers.randn(1100, 320, dtype=torch.bfloat16)
    with helpers.threads(2):
        batch = problem.run(x, bf16_variant)
    with helpers.threads(1):
        assert torch.equal(problem.run(x, bf16_variant), batch)
        for row in (0, 1, 5, 63, 64, 1023, 1024, 1099):
            assert torch.equal(problem.run(x[row], bf16_variant), batch[row])
        assert torch.equal(problem.run(x[3:1050], bf16_variant), batch[3:1050])


@for_bf16
@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_bf16_kernel_of_layouts_equals_contiguous(bf16_variant: str, layout: str) -> None:
    problem, x = _Problem(9, 300, bias=torch.bfloat16), helpers.randn(5, 300, dtype=torch.bfloat16)
    y = problem.run(helpers.LAYOUTS[layout](x), bf16_variant)
    assert torch.equal(y, problem.run(x, bf16_variant))


@for_bf16
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [0, 31, 64])
def test_bf16_kernel_has_the_nan_pattern_of_linear(bf16_variant: str, value: float, column: int) -> None:
    problem, x = _Problem(40, 65), helpers.randn(5, 65, dtype=torch.bfloat16)
    x[2, column] = value
    y, expected = problem.run(x, bf16_variant), problem.exact(x)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[y.isinf()].double(), expected[expected.isinf()])


@for_bf16
def test_bf16_kernel_is_the_choice_for_bfloat16_alone(bf16_variant: str) -> None:
    assert _C.chosen_kernel(OP, "cpu", "bfloat16") == bf16_variant
    with helpers.forced(OP, bf16_variant):
        assert _C.chosen_kernel(OP, "cpu", "float32") == VARIANTS[0]
    with pytest.raises(ValueError, match=f"no kernel '{bf16_variant}' here; one of {VARIANTS[0]}"):
        _Problem(6, 70).run(helpers.randn(3, 70), bf16_variant)


# The weight decoded for torch's product: what CUDA runs for many tokens, by name on a CPU too


@helpers.each("granularity", GRANULARITIES, ids=str)
@helpers.each("bias", [None, torch.float32, torch.bfloat16], ids=helpers.dtype_id)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_unpacked_product_is_near_float64(
    granularity: Granularity, bias: torch.dtype | None, dtype: torch.dtype
) -> None:
    problem = _Problem(70, 128, granularity, bias)
    for shape in ((0, 128), (1, 128), (2, 3, 128)):
        x = helpers.randn(*shape, dtype=dtype)
        y = problem.run(x, "unpack")
        assert y.shape == (*shape[:-1], 70)
        assert y.dtype == dtype
        if x.numel():
            helpers.assert_near(y, problem.exact(x))


def test_unpacked_product_of_several_chunks_of_rows() -> None:
    problem = _Problem(2200, 2048, GRANULARITIES[-1], torch.float32)
    x = helpers.randn(3, 2048)
    helpers.assert_near(problem.run(x, "unpack"), problem.exact(x))


@pytest.mark.parametrize(("m", "n", "k"), [(3, 0, 5), (3, 4, 0), (0, 0, 0)], ids=str)
def test_unpacked_product_of_empty_sizes_behaves_as_linear(m: int, n: int, k: int) -> None:
    problem = _Problem(n, k, bias=torch.float32)
    assert torch.equal(problem.run(torch.randn(m, k), "unpack"), problem.exact(torch.randn(m, k)).float())


# Gradients


@helpers.each("granularity", GRANULARITIES, ids=str)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("shape", [(128,), (5, 128), (2, 3, 128)], ids=str)
def test_packed_gradients_of_x_and_bias(granularity: Granularity, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    problem = _Problem(6, 128, granularity, torch.float32)
    x = helpers.randn(*shape, dtype=dtype).requires_grad_()
    problem.bias.requires_grad_()
    g = helpers.randn(*shape[:-1], 6, seed=9, dtype=dtype)
    problem.run(x).backward(g)
    assert x.grad.dtype == dtype
    assert problem.bias.grad.dtype == torch.float32
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    helpers.assert_near(x.grad, g.double() @ helpers.dense(problem.codes, problem.scale), tolerance)
    helpers.assert_near(problem.bias.grad, g.double().reshape(-1, 6).sum(0), tolerance)


@pytest.mark.parametrize("bias", [None, torch.float32], ids=["no bias", "bias"])
def test_packed_gradient_of_x_alone(bias: torch.dtype | None) -> None:
    problem, x = _Problem(6, 9, bias=bias), helpers.randn(2, 9).requires_grad_()
    problem.run(x).sum().backward()
    helpers.assert_near(x.grad, helpers.dense(problem.codes, problem.scale).sum(0).expand(2, 9))


def test_packed_gradient_of_the_bias_alone() -> None:
    problem, x = _Problem(6, 9, bias=torch.bfloat16), helpers.randn(2, 9)
    problem.bias.requires_grad_()
    problem.run(x).sum().backward()
    assert torch.equal(problem.bias.grad, torch.full((6,), 2.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("end", [torch.sum, lambda t: t.square().sum()], ids=["sum", "square"])
def test_packed_double_backward_raises(end: object) -> None:
    problem, x = _Problem(6, 9), helpers.randn(2, 9).requires_grad_()
    (grad,) = torch.autograd.grad(problem.run(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        end(grad).backward()


def test_packed_under_no_grad_and_inference_mode() -> None:
    problem, x = _Problem(6, 9), helpers.randn(2, 9).requires_grad_()
    expected = problem.run(x).detach()
    with torch.no_grad():
        assert not problem.run(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(problem.run(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
def test_packed_autocast_casts_x_only(dtype: torch.dtype) -> None:
    problem, x = _Problem(6, 70, bias=torch.float32), helpers.randn(3, 70).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = problem.run(x)
    assert y.dtype == dtype
    assert torch.equal(y, problem.run(x.detach().to(dtype)))
    y.sum().backward()
    assert x.grad.dtype == torch.float32


# Arguments


def test_packed_kernel_by_role_and_name() -> None:
    problem, x = _Problem(6, 70), helpers.randn(3, 70)
    expected = problem.run(x)
    for name in ("auto", "baseline", *VARIANTS, *(["tiled"] if len(VARIANTS) > 1 else [])):
        assert torch.equal(problem.run(x, name), expected)


def test_packed_refuses_unknown_kernel_and_lists_the_others() -> None:
    with pytest.raises(ValueError, match=r"no kernel 'nosuch' here; one of .*scalar.*auto"):
        _Problem(6, 70).run(helpers.randn(3, 70), "nosuch")


def test_force_kernel_changes_the_automatic_choice(variant: str) -> None:
    with helpers.forced(OP, variant):
        assert _C.chosen_kernel(OP, "cpu", "float32") == variant
    assert _C.chosen_kernel(OP, "cpu", "float32") == VARIANTS[0]


def test_force_kernel_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match="has no kernel 'nosuch'"):
        _C.force_kernel(OP, "nosuch")
    with pytest.raises(ValueError, match="no op is called 'nosuch'"):
        _C.force_kernel("nosuch", "scalar")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 12)}, ValueError, r"w_packed must be \(out_features, 3\) uint8 for in_features=12"),
        ({"x": torch.zeros(())}, (ValueError, IndexError), "dimension"),
        ({"x": torch.zeros(2, 8).double()}, TypeError, "x must be float32, float16"),
        ({"x": torch.zeros(2, 8, dtype=torch.int8)}, TypeError, "x must be float32, float16 or bfloat16, got int8"),
        ({"w_packed": torch.zeros(4, 2, dtype=torch.int8)}, TypeError, "w_packed must be uint8"),
        ({"w_packed": torch.zeros(8, dtype=torch.uint8)}, ValueError, "w_packed must be"),
        ({"scale": torch.ones(3)}, ValueError, r"out_features=4, got \[3\]"),
        ({"scale": torch.ones(4).half()}, TypeError, "scale must be float32"),
        ({"scale": torch.ones(4, 3)}, ValueError, "3 groups a row, which do not cut in_features=8"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must be \(4,\) for out_features=4, got \[5\]"),
        ({"bias": torch.zeros(4, 1)}, ValueError, "bias must be"),
        ({"bias": torch.zeros(4).double()}, TypeError, "bias must be float32"),
        ({"bias": torch.zeros(4, dtype=torch.int8)}, TypeError, "bias must be float32, float16 or bfloat16, got int8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_packed_refuses_bad_arguments(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    good = {"x": torch.zeros(2, 8), "w_packed": torch.zeros(4, 2, dtype=torch.uint8), "scale": torch.ones(4)}
    ops.ternary_linear_packed(**good)
    with pytest.raises(error, match=message):
        ops.ternary_linear_packed(**{**good, **change})


@pytest.mark.parametrize("requires_grad", [False, True], ids=["frozen", "grad"])
@pytest.mark.parametrize("bias", [None, torch.float32], ids=["no bias", "bias"])
def test_packed_passes_opcheck(requires_grad: bool, bias: torch.dtype | None) -> None:
    problem = _Problem(6, 16, Granularity("group", 8), bias)
    x = helpers.randn(2, 3, 16).requires_grad_(requires_grad)
    op = torch.ops.bittorch.ternary_linear_packed.default
    torch.library.opcheck(op, (x, problem.packed, problem.scale, problem.bias))


def test_packed_on_meta_gives_the_shape() -> None:
    y = ops.ternary_linear_packed(
        torch.zeros(2, 3, 9, dtype=torch.float16, device="meta"),
        torch.zeros(4, 3, dtype=torch.uint8, device="meta"),
        torch.ones(4, device="meta"),
    )
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 4), torch.float16, "meta")


def test_packed_gradient_with_functorch_raises_clearly() -> None:
    problem = _Problem(6, 9)
    with pytest.raises(RuntimeError, match=r"torch\.func transforms .* backend='python'"):
        torch.func.grad(lambda x: problem.run(x).sum())(helpers.randn(2, 9))
