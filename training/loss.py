"""The one loss: a row of the table of methods, applied to a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelist.training.data import sent
from lifelist.training.forms import FORMS
from lifelist.training.methods import Method

TERMS = ("classify_new", "distil_new", "classify_old", "distil_old")


def increment_loss(
    method: Method,
    student: Tensor,
    teacher: Tensor,
    rows: Tensor,
    heads: Sequence[slice],
    refreshed: Sequence[int] = (),
) -> Tensor:
    """The four terms of one batch, each averaged over all its images and weighted: their sum is the loss.

    student  B×(n+m) float, raw logits, old classes first
    teacher  B×n float, logits of the live network as it answers (its bias correction applied); n = 0 for the base
    rows     B int64, which output is right
    heads    the n old outputs, cut by the increment that brought them (forms.distillation_heads)
    refreshed  old rows whose classes bring new images. They count among the m of the weights, their images as new, and
               nothing is distilled on these: the teacher may be wrong about them, and would speak against the label

    Returns 4 numbers, in the order of TERMS; in float32 or better, whatever the network ran in.
    """
    precision = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(precision), teacher.to(precision)
    n, m = teacher.shape[1], student.shape[1] - teacher.shape[1]
    form = FORMS[method.form]
    classify = form.classify(student, rows, n)
    distil = form.distil(student[:, :n], teacher, heads)
    is_new, is_refreshed = rows >= n, torch.isin(rows, rows.new_tensor(refreshed))
    brought, known = is_new | is_refreshed, ~is_new & ~is_refreshed
    each = torch.stack([classify * brought, distil * is_new, classify * known, distil * known])
    weigh_classify, weigh_distil = method.weights(n - len(refreshed), m + len(refreshed))
    weights = [weigh_classify, weigh_distil, weigh_classify, weigh_distil]
    wanted = [weight if term else 0.0 for weight, term in zip(weights, method.terms, strict=True)]
    return each.mean(1) * sent(torch.tensor(wanted, dtype=precision), student.device)
