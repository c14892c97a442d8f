"""The forms of loss: each is two functions that give one number for each image. A new form is a row in FORMS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 2.0  # of softmax distillation in BiC (section 6.2) and EEIL (section 3); neither multiplies by T²
SIGMOID_WIDTH = 100  # iCaRL's learning rate of 2.0 is for a mean over 100 outputs, those of unseen classes included


@dataclass(frozen=True, slots=True)
class Form:
    """classify(student B×(n+m), rows B, n) → B;  distil(student's old outputs B×n, teacher B×n, heads) → B."""

    classify: Callable[[Tensor, Tensor, int], Tensor]
    distil: Callable[[Tensor, Tensor, Sequence[slice]], Tensor]


def cross_entropy(student: Tensor, rows: Tensor, n: int) -> Tensor:
    """-log softmax(z)_y over all n+m outputs, for each image. student: B×(n+m) raw logits; rows: B int64."""
    return functional.cross_entropy(student, rows, reduction="none")


def softmax_distillation(student: Tensor, teacher: Tensor, heads: Sequence[slice]) -> Tensor:
    """-Σ_k p̂_k log p_k with p̂, p = softmax(·/T) over the n old outputs (Wu et al. 2019, eq. 1), for each image.

    Both are sliced before the softmax, never after it, so that each row is a distribution. No factor T².
    """
    if teacher.shape[1] == 0:
        return student.new_zeros(len(student))
    wanted = torch.softmax(teacher / TEMPERATURE, dim=1)
    return -(wanted * torch.log_softmax(student / TEMPERATURE, dim=1)).sum(1)


def per_head_distillation(student: Tensor, teacher: Tensor, heads: Sequence[slice]) -> Tensor:
    """The sum over heads of one softmax distillation each, weight 1 (Castro et al. 2018, eq. 3), for each image.

    normalise(softmax(ẑ)^(1/T)), as the authors compute it, is softmax(ẑ/T).
    """
    losses = [softmax_distillation(student[:, head], teacher[:, head], ()) for head in heads]
    return torch.stack(losses).sum(0) if losses else student.new_zeros(len(student))


def binary_cross_entropy(student: Tensor, rows: Tensor, n: int) -> Tensor:
    """Σ over the m new outputs of BCE(σ(z_k), 1[y = k]) / 100 (Rebuffi et al. 2017, algorithm 3), for each image.

    An exemplar is a negative of every new output; its label never touches an old one.
    """
    new = student[:, n:]
    wanted = (rows[:, None] == torch.arange(n, student.shape[1], device=rows.device)).to(student.dtype)
    return functional.binary_cross_entropy_with_logits(new, wanted, reduction="none").sum(1) / SIGMOID_WIDTH


def sigmoid_distillation(student: Tensor, teacher: Tensor, heads: Sequence[slice]) -> Tensor:
    """Σ over the n old outputs of BCE(σ(z_k), σ(ẑ_k)) / 100 (Rebuffi et al. 2017, algorithm 3), for each image."""
    wanted = torch.sigmoid(teacher)
    return functional.binary_cross_entropy_with_logits(student, wanted, reduction="none").sum(1) / SIGMOID_WIDTH


def distillation_heads(sizes: Sequence[int]) -> list[slice]:
    """The outputs, cut by the increment that brought them; a head of one joins the one before it.

    A softmax over one output is constant and teaches nothing (methods.md 1.3), so that a head of one class is merged
    into the preceding head, for distillation only; if it is the first, the following one takes it in.
    """
    merged: list[int] = []
    for size in sizes:
        if merged and (size < 2 or merged[-1] < 2):
            merged[-1] += size
        else:
            merged.append(size)
    ends = [sum(merged[: k + 1]) for k in range(len(merged))]
    return [slice(end - size, end) for size, end in zip(merged, ends, strict=True)]


FORMS: dict[str, Form] = {
    "softmax": Form(cross_entropy, softmax_distillation),
    "per-head": Form(cross_entropy, per_head_distillation),
    "sigmoid": Form(binary_cross_entropy, sigmoid_distillation),
}
