"""Losses of one student, one value an example.

A loss takes ``student_logits`` (B, C), ``teacher_logits`` (B, C) and ``labels`` (B,) and returns
(B,). Its keyword-only parameters are its hyperparameters and the keys of its yaml; they are floats
or 0-d tensors, since a stack of K students maps the same function over K values of each.

A loss that learns from a teacher has an ``alpha``, the weight of its soft term, and equals
``alpha * soft + (1 - alpha) * hard`` for every alpha in [0, 1], the ends included. A loss without
``alpha`` learns from labels alone and is given no teacher logits.

Letters: B examples in a batch, C classes, T temperature, N = C in Hinton, Vinyals and Dean (2015),
"Distilling the Knowledge in a Neural Network", arXiv 1503.02531, below "the paper".
"""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

__all__ = ["hard", "kd", "logits"]

Weight = Annotated[float, Field(ge=0, le=1)]


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the classes of (B, C); with classes first in memory, where all examples go at once."""
    return F.log_softmax(logits.mT, -2).mT


def hard(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:  # noqa: ARG001
    """Cross-entropy with the labels at temperature 1; the teacher is not used. Returns (B,)."""
    # Mapped over members, this is several times faster than F.cross_entropy.
    return -_log_softmax(student_logits).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: PositiveFloat,
    alpha: Weight,
) -> Tensor:
    """Knowledge distillation: ``alpha T^2 KL(p || q) + (1 - alpha) CE``, returns (B,).

    p and q are the softmax of teacher and student logits over ``temperature``; CE is with the
    labels at temperature 1. The gradient of the soft term is (q - p) / T before the factor T^2,
    which keeps its weight against CE when T changes (the paper, section 2).
    """
    p = _log_softmax(teacher_logits / temperature)
    q = _log_softmax(student_logits / temperature)
    soft = temperature**2 * (p.exp() * (p - q)).sum(-1)
    return alpha * soft + (1 - alpha) * hard(student_logits, None, labels)


def logits(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: Weight
) -> Tensor:
    """Logit matching: ``alpha / (2 C) |z - v|^2 + (1 - alpha) CE``, returns (B,).

    z and v are the logits of student and teacher, each zero-meaned over the classes. Its soft term
    is the limit of ``kd``'s for T to infinity (the paper, section 2.1, times T^2).
    """
    z = student_logits - student_logits.mean(-1, keepdim=True)
    v = teacher_logits - teacher_logits.mean(-1, keepdim=True)
    soft = (z - v).square().mean(-1) / 2
    return alpha * soft + (1 - alpha) * hard(student_logits, None, labels)
