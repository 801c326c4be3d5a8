"""Distillation at a temperature that is learned against the student.

Letters: B examples in a batch, C classes, T temperature.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from distill.losses.distillation import kd
from distill.losses.mixing import ClassWeights, Smoothing, Weight


class LearnedTemperature(nn.Module):
    """A number of which `ctkd` makes the temperature of all examples; at first it is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(()))

    def forward(self) -> Tensor:
        """The number, ()."""
        return self.value


def ctkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    learned: LearnedTemperature,
    progress: float,
    class_counts: Tensor | None = None,
    *,
    start: Annotated[float, Field(ge=0.1, le=100)] = 1.0,
    span: Annotated[float, Field(gt=0, le=100)] = 20.0,
    reversal: NonNegativeFloat = 1.0,
    warmup: PositiveFloat = 10 / 240,
    alpha: Weight = 0.9,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Curriculum temperature: `kd`, whose temperature is learned to make the soft term larger.

    Li et al. (2023), "Curriculum Temperature for Knowledge Distillation", arXiv 2211.16231, with
    one temperature for all examples: ``T = start + span sigmoid(w)``. Its w gets the gradient of
    the loss times -lambda, where ``lambda = reversal (1 - cos(pi min(1, t / warmup))) / 2`` of the
    share t of the training that is done. The authors take 10 of 240 epochs for that, epoch by
    epoch, and w = 1 at first, so T = 15.6; w is trained by the optimizer of the student, its weight
    decay included.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        learned: makes w.
        progress: t.
        start: the least T, up to 100: the gradient by T of larger ones is lost in rounding.
        span: how much larger it may become, up to 100.
        reversal: lambda at its largest; 0 leaves T to the weight decay alone.
        warmup: the share of the training in which lambda rises.
        alpha: the weight of the soft term, from 0 to 1.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, T^2 KL(p || q), ``hard``, CE, and
        ``temperature``, ().

    Example:
        >>> z, v = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> total, terms = ctkd(z, v, torch.tensor([0]), LearnedTemperature(), 0.5)
        >>> terms["temperature"]
        tensor(15.6212, grad_fn=<AddBackward0>)
    """
    t = start + span * learned().sigmoid()
    fixed = t.detach()
    rising = torch.as_tensor(progress / warmup, dtype=t.dtype, device=t.device).clamp(max=1)
    strength = reversal * (1 - torch.cos(math.pi * rising)) / 2
    against = fixed - strength * (t - fixed)  # T, with a gradient times -lambda
    total, terms = kd(
        student_logits,
        teacher_logits,
        labels,
        class_counts,
        temperature=fixed,
        alpha=alpha,
        smoothing=smoothing,
        class_weights=class_weights,
    )
    # kd has no gradient by T: that of the formula as it stands, whose value is left out.
    plain = _divergence(student_logits.detach(), teacher_logits, against)
    total = total + alpha * (plain - plain.detach())
    return total, {**terms, "temperature": t}


def _divergence(student: Tensor, teacher: Tensor, t: Tensor) -> Tensor:
    """``T^2 KL(p || q)`` of logits (B, C), in (B,)."""
    p, q = (F.log_softmax(z / t, -1) for z in (teacher, student))
    return t**2 * (p.exp() * (p - q)).sum(-1)
