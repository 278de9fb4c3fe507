import math

import pytest
import torch

from bittorch.train import distill
from tests import helpers


def _kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """By the definition, in float64."""
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    return (p * (p.log() - q.log())).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_logits_kl_is_its_definition(temperature: float, dtype: torch.dtype) -> None:
    student, teacher = helpers.randn(3, 5, 11, dtype=dtype), helpers.randn(3, 5, 11, seed=2, dtype=dtype)
    loss = distill.logits_kl(student, teacher, temperature)
    assert loss.dtype == torch.float32
    expected = temperature**2 * _kl(student.double() / temperature, teacher.double() / temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5 if dtype == torch.float32 else 1e-2)


def test_gradient_reaches_the_student_alone() -> None:
    student, teacher = helpers.randn(4, 6).requires_grad_(), helpers.randn(4, 6, seed=2).requires_grad_()
    distill.logits_kl(student, teacher).backward()
    helpers.assert_near(student.grad, (student.double().softmax(-1) - teacher.double().softmax(-1)).detach() / 4)
    distill.feature_cosine(student, teacher).backward()
    states = student.view(1, 4, 6), teacher.view(1, 4, 6)
    distill.attention_relation(*states, heads=2).backward()
    assert teacher.grad is None


def test_logits_kl_counts_only_what_the_mask_keeps() -> None:
    student, teacher = helpers.randn(2, 3, 5), helpers.randn(2, 3, 5, seed=2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss = distill.logits_kl(student, teacher, mask=mask)
    expected = _kl(student[mask], teacher[mask])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distill.logits_kl(student, teacher, mask=torch.zeros_like(mask)).item() == 0


def test_excluded_classes_do_not_make_nan() -> None:
    student, teacher = helpers.randn(4, 6).requires_grad_(), helpers.randn(4, 6, seed=2)
    hidden = torch.tensor([False, True, False, False, True, False])
    masked = [t.masked_fill(hidden, -torch.inf) for t in (student, teacher)]
    loss = distill.logits_kl(*masked)
    loss.backward()
    assert loss.item() == pytest.approx(_kl(student[:, ~hidden], teacher[:, ~hidden]).item(), rel=1e-5)
    assert student.grad.isfinite().all()


def test_all_losses_are_zero_for_equal_inputs_and_grow_with_the_difference() -> None:
    x, other = helpers.randn(2, 5, 8), helpers.randn(2, 5, 8, seed=2)
    for loss in (distill.logits_kl, distill.feature_cosine, lambda a, b: distill.attention_relation(a, b, 2)):
        assert loss(x, x).item() == pytest.approx(0, abs=1e-6)
        assert loss(x + 0.1 * other, x) < loss(x + other, x)


def test_feature_cosine_is_its_definition_and_ignores_size() -> None:
    student, teacher = helpers.randn(7, 9), helpers.randn(7, 9, seed=2)
    a, b = student.double(), teacher.double()
    expected = (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
    assert distill.feature_cosine(student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distill.feature_cosine(3 * student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


def _relation(x: torch.Tensor, heads: int) -> torch.Tensor:
    parts = x.double().chunk(heads, dim=-1)
    return torch.stack([part @ part.transpose(1, 2) / part.shape[-1] ** 0.5 for part in parts])


def test_attention_relation_is_its_definition_for_other_widths() -> None:
    student, teacher = helpers.randn(2, 5, 8), helpers.randn(2, 5, 12, seed=2)
    loss = distill.attention_relation(student, teacher, heads=2)
    assert loss.item() == pytest.approx(_kl(_relation(student, 2), _relation(teacher, 2)).item(), rel=1e-5)


def test_attention_relation_of_padded_tokens_is_that_of_the_short_text() -> None:
    student, teacher = helpers.randn(1, 6, 8).requires_grad_(), helpers.randn(1, 6, 8, seed=2)
    mask = torch.tensor([[True, True, True, True, False, False]])
    loss = distill.attention_relation(student, teacher, 2, mask)
    short = distill.attention_relation(student[:, :4], teacher[:, :4], 2)
    assert loss.item() == pytest.approx(short.item(), rel=1e-5)
    loss.backward()
    assert student.grad.isfinite().all()
    assert (student.grad[:, 4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=helpers.dtype_id)
def test_losses_over_nothing_are_zero_and_have_a_graph(dtype: torch.dtype) -> None:
    student, teacher = helpers.randn(2, 5, 8, dtype=dtype).requires_grad_(), helpers.randn(2, 5, 8, seed=1, dtype=dtype)
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    losses = [
        distill.logits_kl(student[:0], teacher[:0]),
        distill.logits_kl(student, teacher, mask=nobody),
        distill.feature_cosine(student[:0], teacher[:0]),
        distill.attention_relation(student[:0], teacher[:0], 2),
        distill.attention_relation(student[:, :0], teacher[:, :0], 2),
        distill.attention_relation(student, teacher, 2, nobody),
    ]
    for loss in losses:
        (grad,) = torch.autograd.grad(loss, student)
        assert loss.item() == 0
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        assert (grad == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 3.0, 5.0])
def test_half_precision_logits_are_divided_in_float32(temperature: float) -> None:
    student = helpers.randn(4, 50, dtype=torch.bfloat16)
    assert distill.logits_kl(student, student.float(), temperature).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=helpers.dtype_id)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_large_features_do_not_leave_the_range_of_half_precision(dtype: torch.dtype, autocast: bool) -> None:
    student, teacher = helpers.randn(2, 5, 8).to(dtype), helpers.randn(2, 5, 8, seed=2).to(dtype)
    student[..., 3] = teacher[..., 3] = 300  # squared, beyond the 65504 of float16
    student.requires_grad_()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        loss = distill.attention_relation(student, teacher, 2)
    loss.backward()
    relations = [s.detach().double().unflatten(2, (2, 4)).transpose(1, 2) for s in (student, teacher)]
    expected = _kl(*(r @ r.transpose(2, 3) / 2 for r in relations))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)  # float32 sums near 45000
    assert student.grad.isfinite().all()


def test_bad_arguments_raise() -> None:
    x = helpers.randn(2, 5, 8)
    with pytest.raises(ValueError, match=r"logits of student and teacher must match, got \(2, 5, 8\) and \(2, 5, 7\)"):
        distill.logits_kl(x, x[..., :7])
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        distill.logits_kl(x, x, 0)
    with pytest.raises(ValueError, match="temperature must be positive and finite, got inf"):
        distill.logits_kl(x, x, math.inf)
    with pytest.raises(ValueError, match="mask must be bool"):
        distill.logits_kl(x, x, mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="features of student and teacher must match"):
        distill.feature_cosine(x, x[:1])
    with pytest.raises(ValueError, match="same batch and tokens"):
        distill.attention_relation(x, x[:, :4], 2)
    with pytest.raises(ValueError, match="heads must divide both widths, got heads=2, 8 and 0"):
        distill.attention_relation(x, x[..., :0], 2)
    with pytest.raises(ValueError, match="heads must divide both widths, got heads=3, 8 and 8"):
        distill.attention_relation(x, x, 3)
    with pytest.raises(ValueError, match="mask must be bool"):
        distill.attention_relation(x, x, 2, torch.ones(2, 4, dtype=torch.bool))
