"""The four-term loss against references of three lines, in float64 (methods.md section 2, acceptance test 1)."""

import pytest
import torch
from torch import Tensor

from lifelist.training.forms import FORMS, distillation_heads
from lifelist.training.loss import increment_loss
from lifelist.training.methods import METHODS, by_share, in_full

SIZES = [(3, 2), (1, 1), (3, 1), (4, 7), (11, 1)]


def batch(n: int, m: int, count: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """(student B×(n+m), teacher B×n, rows B): old and new rows, in float64."""
    lot = torch.Generator().manual_seed(n * 100 + m)
    student = 3 * torch.randn(count, n + m, generator=lot, dtype=torch.float64)
    teacher = 3 * torch.randn(count, n, generator=lot, dtype=torch.float64)
    return student, teacher, torch.arange(count) % (n + m)


def softmax(z: Tensor) -> Tensor:
    """Written out, in case torch's own is what is wrong."""
    e = (z - z.max(dim=1, keepdim=True).values).exp()
    return e / e.sum(dim=1, keepdim=True)


def reference_bic(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    n, share = t.shape[1], t.shape[1] / z.shape[1]
    classify = -softmax(z)[range(len(y)), y].log().mean()
    distil = -(softmax(t / 2) * softmax(z[:, :n] / 2).log()).sum(1).mean()
    return share * distil + (1 - share) * classify


def reference_eeil(z: Tensor, t: Tensor, y: Tensor, heads: list[slice], on: Tensor) -> Tensor:
    classify = -softmax(z)[range(len(y)), y].log().mean()
    each = [-(softmax(t[:, h] / 2) * softmax(z[:, h] / 2).log()).sum(1) for h in heads]
    return classify + (torch.stack(each).sum(0) * on).mean()


def reference_icarl(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    target = torch.nn.functional.one_hot(y, z.shape[1]).double()
    target[:, : t.shape[1]] = torch.sigmoid(t)
    p = torch.sigmoid(z)
    return -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean() / 100


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("method", ["bic", "wa"])
def test_bic_and_wa_lose_what_the_formula_says(method: str, n: int, m: int) -> None:
    student, teacher, rows = batch(n, m)
    loss = increment_loss(METHODS[method], student, teacher, rows, distillation_heads((n,))).sum()
    assert loss == pytest.approx(float(reference_bic(student, teacher, rows)), abs=1e-12)


@pytest.mark.parametrize("sizes", [(3,), (3, 2), (2, 7, 3)])
@pytest.mark.parametrize("m", [1, 4])
def test_eeil_loses_one_softmax_for_each_head(sizes: tuple[int, ...], m: int) -> None:
    student, teacher, rows = batch(sum(sizes), m)
    heads = distillation_heads(sizes)
    assert [h.stop - h.start for h in heads] == list(sizes)
    old = (rows < sum(sizes)).double()
    for method, on in (("eeil-all", torch.ones_like(old)), ("eeil", old)):
        loss = increment_loss(METHODS[method], student, teacher, rows, heads).sum()
        assert loss == pytest.approx(float(reference_eeil(student, teacher, rows, heads, on)), abs=1e-12)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_icarl_loses_binary_cross_entropy_with_the_teachers_sigmoids_in_the_old_columns(n: int, m: int) -> None:
    student, teacher, rows = batch(n, m)
    loss = increment_loss(METHODS["icarl"], student, teacher, rows, []).sum()
    assert loss == pytest.approx(float(reference_icarl(student, teacher, rows)), abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 2), (2, 1)])
def test_gradients_are_those_of_finite_differences(method: str, n: int, m: int) -> None:
    student, teacher, rows = batch(n, m, count=4)
    heads = distillation_heads((n,) if n else ())
    student.requires_grad_()

    def loss(z: Tensor) -> Tensor:
        return increment_loss(METHODS[method], z, teacher, rows, heads).sum()

    assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.parametrize("method", METHODS)
def test_the_four_terms_are_those_of_the_row(method: str) -> None:
    student, teacher, rows = batch(3, 2)
    terms = increment_loss(METHODS[method], student, teacher, rows, distillation_heads((3,)))
    assert [bool(term > 0) for term in terms] == list(METHODS[method].terms)


@pytest.mark.parametrize("method", METHODS)
def test_a_base_is_plain_classification(method: str) -> None:
    student, teacher, rows = batch(0, 4)
    terms = increment_loss(METHODS[method], student, teacher, rows, [])
    assert terms[0] > 0
    assert terms[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("old", "new", "distil"), [(90, 10, 0.9), (3, 1, 0.75), (1, 7, 0.125)])
def test_b7_bic_weighs_distillation_by_the_share_of_old_classes(old: int, new: int, distil: float) -> None:
    assert METHODS["bic"].weights(old, new) == pytest.approx((1 - distil, distil))


def test_b8_the_distillation_of_an_image_does_not_depend_on_the_others_in_its_batch() -> None:
    student, teacher, _ = batch(5, 0)
    for form in FORMS.values():
        whole = form.distil(student, teacher, [slice(0, 5)])
        alone = torch.cat([form.distil(student[k : k + 1], teacher[k : k + 1], [slice(0, 5)]) for k in range(12)])
        torch.testing.assert_close(whole, alone)


def test_b8_what_the_teacher_teaches_is_a_distribution_over_classes() -> None:
    teacher = batch(5, 0)[1]
    student = torch.zeros_like(teacher)  # against it every distribution over 5 classes costs log 5, and only those
    cost = FORMS["softmax"].distil(student, teacher, [])
    torch.testing.assert_close(cost, torch.full_like(cost, 5.0).log())


def test_b11_b12_bic_distils_by_softmax_times_lambda_and_not_times_temperature_squared() -> None:
    student, teacher, rows = batch(6, 2)
    terms = increment_loss(METHODS["bic"], student, teacher, rows, [])
    plain = -(softmax(teacher / 2) * softmax(student[:, :6] / 2).log()).sum(1).mean()
    assert terms[1] + terms[3] == pytest.approx(float(0.75 * plain), abs=1e-12)


def test_b20_no_method_assumes_increments_of_equal_size() -> None:
    assert [by_share(n, m)[1] for n, m in ((3, 1), (4, 7), (11, 1))] == pytest.approx([3 / 4, 4 / 11, 11 / 12])
    assert in_full(3, 1) == in_full(4, 7) == (1.0, 1.0)


def test_e1_every_old_head_is_distilled_at_the_first_increment_too() -> None:
    student, teacher, rows = batch(4, 2)
    terms = increment_loss(METHODS["eeil-all"], student, teacher, rows, distillation_heads((4,)))
    assert terms[1] > 0
    assert terms[3] > 0


def test_e3_eeil_distils_by_cross_entropy_not_by_binary_cross_entropy_on_softmax() -> None:
    _, teacher, _ = batch(4, 0)
    student = teacher.clone().requires_grad_()
    FORMS["per-head"].distil(student, teacher, [slice(0, 4)]).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12  # at its teacher, a student rests
    other = torch.zeros_like(teacher).requires_grad_()
    FORMS["per-head"].distil(other, teacher, [slice(0, 4)]).sum().backward()
    assert other.grad is not None
    torch.testing.assert_close(other.grad, (softmax(torch.zeros_like(teacher)) - softmax(teacher / 2)) / 2)


@pytest.mark.parametrize(
    ("sizes", "merged"),
    [
        ((3, 1, 7), [4, 7]),
        ((2, 2), [2, 2]),
        ((1,), [1]),
        ((1, 1), [2]),
        ((1, 3), [4]),
        ((1, 1, 1), [3]),
        ((5, 1, 1, 2), [7, 2]),
        ((), []),
    ],
)
def test_a_head_of_one_class_joins_the_preceding_head_for_distillation(
    sizes: tuple[int, ...], merged: list[int]
) -> None:
    heads = distillation_heads(sizes)
    assert [h.stop - h.start for h in heads] == merged
    assert [h.start for h in heads] == [sum(merged[:k]) for k in range(len(merged))]


def test_a_head_of_one_class_that_was_not_merged_would_teach_nothing() -> None:
    student, teacher, _ = batch(4, 0)
    student.requires_grad_()
    FORMS["per-head"].distil(student, teacher, [slice(0, 3), slice(3, 4)]).sum().backward()
    assert student.grad is not None
    assert student.grad[:, 3].abs().max() == 0
    student.grad = None
    FORMS["per-head"].distil(student, teacher, distillation_heads((3, 1))).sum().backward()
    assert student.grad is not None
    assert student.grad[:, 3].abs().max() > 0


def test_i1_the_label_of_an_exemplar_never_touches_an_old_output() -> None:
    student, teacher, _ = batch(3, 2)
    gradients = []
    for label in (0, 2):  # two old classes: to the loss they are the same
        z = student.clone().requires_grad_()
        increment_loss(METHODS["icarl"], z, teacher, torch.full((12,), label), []).sum().backward()
        assert z.grad is not None
        gradients.append(z.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(
        gradients[0][:, 3:], torch.sigmoid(student[:, 3:]) / 12 / 100
    )  # negatives of new outputs


@pytest.mark.parametrize("n", [2, 20])
def test_i2_every_output_weighs_the_same_in_icarl_however_many_are_old(n: int) -> None:
    student, teacher, rows = torch.zeros(1, n + 2), torch.full((1, n), 100.0), torch.tensor([n])
    terms = increment_loss(METHODS["icarl"], student, teacher, rows, [])
    assert terms[0] / 2 == pytest.approx(float(terms[1]) / n, rel=1e-5)
    assert terms[0] == pytest.approx(2 * 0.6931472 / 100, rel=1e-5)


def test_old_logits_are_cut_before_the_softmax_not_after_it() -> None:
    student, teacher, rows = batch(3, 2)
    one = increment_loss(METHODS["bic"], student, teacher, rows, [])
    student[:, 3:] += 50  # new outputs must not change what is distilled on old ones
    other = increment_loss(METHODS["bic"], student, teacher, rows, [])
    torch.testing.assert_close(one[[1, 3]], other[[1, 3]])
    assert bool((one[[1, 3]] > 0).all())
