"""The one loss: a row of the table of methods, applied to a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelist.training.data import sent
from lifelist.training.forms import FORMS
from lifelist.training.methods import Method

TERMS = ("classify_new", "distil_new", "classify_old", "distil_old")


def increment_loss(method: Method, student: Tensor, teacher: Tensor, rows: Tensor, heads: Sequence[slice]) -> Tensor:
    """The four terms of one batch, each averaged over all its images and weighted: their sum is the loss.

    student  B×(n+m) float, raw logits, old classes first
    teacher  B×n float, logits of the live network as it answers (its bias correction applied); n = 0 for the base
    rows     B int64, which output is right
    heads    the n old outputs, cut by the increment that brought them (forms.distillation_heads)

    Returns 4 numbers, in the order of TERMS; in float32 or better, whatever the network ran in.
    """
    precision = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(precision), teacher.to(precision)
    n, m = teacher.shape[1], student.shape[1] - teacher.shape[1]
    form = FORMS[method.form]
    classify = form.classify(student, rows, n)
    distil = form.distil(student[:, :n], teacher, heads)
    is_new = (rows >= n).to(precision)
    each = torch.stack([classify * is_new, distil * is_new, classify * (1 - is_new), distil * (1 - is_new)])
    weigh_classify, weigh_distil = method.weights(n, m)
    weights = [weigh_classify, weigh_distil, weigh_classify, weigh_distil]
    wanted = [weight if term else 0.0 for weight, term in zip(weights, method.terms, strict=True)]
    return each.mean(1) * sent(torch.tensor(wanted, dtype=precision), student.device)
