"""Knowledge distillation: the divergence of softened distributions.

Letters: B examples in a batch, C classes, T temperature.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.labels import hard
from distill.losses.mixing import ClassWeights, Smoothing, Temperature, Weight, mixed


class _Divergence(torch.autograd.Function):
    """``T^2 KL(p || q)`` of student and teacher logits (..., B, C); its gradient is made with it.

    The formula as it stands, and q - p, are differences of numbers that agree in ever more digits
    as T grows. With x = (w - E_p w) / T and w = z - v, q is p exp(x) over its sum, so that

        KL = log E_p exp(x) = log(1 + E_p phi),  phi = exp(x) - 1 - x >= 0,
        q - p = p (exp(x) - 1 - E_p phi) / (1 + E_p phi),

    where nothing cancels but within phi, for which a series stands in at small x. Where exp(x)
    grows too large, p and q differ so much that the plain formulas are exact.
    """

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        z, v = student.mT, teacher.mT.contiguous()  # (..., C, B), as in `_log_softmax`
        largest, top = v.max(-2, keepdim=True)
        teachers = (v - largest) / t
        p = F.softmax(teachers, -2)
        u = z - v
        u -= u.gather(-2, top.expand(*u.shape[:-2], 1, -1))  # so E_p w is exact where p is nearly 1
        u -= (p * u).sum(-2, keepdim=True)
        x = u / t
        growth = x.expm1().mul_(t)  # T (exp(x) - 1)
        series = (x / 6).add_(0.5).mul_(x).mul_(u)  # T phi
        small = x.abs() < torch.finfo(x.dtype).eps ** (1 / 3)
        s = torch.where(small, series, growth - u).mul_(p).sum(-2, keepdim=True)
        y = s / t  # E_p phi
        value = t * s * torch.where(y > torch.finfo(y.dtype).eps, y.log1p() / y, 1.0)
        gradient = growth.sub_(s).mul_(p).div_(1 + y)
        steep = ~y.isfinite()
        if z.is_cuda or steep.any():  # rare, and on a GPU it would take longer to ask
            students = (z - z.amax(-2, keepdim=True)) / t
            q = F.softmax(students, -2)
            scale = (p.amax(-2, keepdim=True) / q.amax(-2, keepdim=True)).log()
            kl = scale + (p * (teachers - students)).sum(-2, keepdim=True)
            value = torch.where(steep, t * (t * kl.clamp(min=0)), value)
            gradient = torch.where(steep, t * (q - p), gradient)
        return value.squeeze(-2), gradient.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, tuple[int, int]]:
        """Map over members: their axis comes first."""
        z, v, t = (
            x if dim is None else x.movedim(dim, 0) for x, dim in zip(inputs, dims, strict=True)
        )
        z = z if dims[0] is not None else z.expand(info.batch_size, *z.shape)
        v = v if dims[1] is None or v.dim() == z.dim() else v.unsqueeze(1)
        t = t if dims[2] is None else t.reshape(-1, *[1] * (z.dim() - 1))
        return _Divergence.apply(z, v, t), (0, 0)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        if any(ctx.needs_input_grad[1:]):
            raise NotImplementedError("kd has a gradient by student_logits and alpha alone")
        (gradient,) = ctx.saved_tensors
        weight = outer[0].unsqueeze(-1)
        return (weight * gradient).masked_fill_(weight == 0, 0), None, None


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    temperature: Temperature,
    alpha: Weight,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Knowledge distillation: ``alpha T^2 KL(p || q) + (1 - alpha) CE``.

    p and q are the softmax of teacher and student logits over the temperature T; CE is with the
    labels at temperature 1. The gradient of the soft term is (q - p) / T before the factor T^2,
    which keeps its weight against CE when T changes (the paper, section 2).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        temperature: T, from 1e-6 to 1e30.
        alpha: the weight of the soft term, from 0 to 1.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, T^2 KL(p || q), and ``hard``, CE.

    Example:
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> total, terms = kd(z, z, torch.tensor([0]), temperature=4.0, alpha=0.5)
        >>> terms["soft"], terms["hard"]
        (tensor([0.]), tensor([0.1269]))
    """
    soft, _ = _Divergence.apply(student_logits, teacher_logits, temperature)
    labelled = hard(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    return mixed(alpha, soft, labelled), {"soft": soft, "hard": labelled}
