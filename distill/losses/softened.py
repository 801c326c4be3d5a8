"""Divergences of softened distributions, each made with its gradient, exact at every temperature.

p and q are the softmax of teacher and student logits, v and z, over a temperature T. Formulas as
papers write them are differences of numbers that agree in ever more digits as T grows. With
w = z - v, centred so that E_p w = 0, and x = w / T, q is p exp(x) over its sum, so that

    KL(p || q) = log E_p exp(x) = log(1 + E_p phi),  phi = exp(x) - 1 - x >= 0,
    q - p = p (exp(x) - 1 - E_p phi) / (1 + E_p phi),

where nothing cancels but within phi, for which a series stands in at small x. Where exp(x) grows
too large, p and q differ so much that the plain formulas are exact.

A formula takes logits (..., B, C) of student and teacher, and its numbers; it returns one value
(..., B) or several, and as many gradients (..., B, C) by the student's logits. Within it classes
come before examples, as in `distill.losses.labels`, so that all examples go at once.

Letters: B examples in a batch, C classes, T temperature.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Number = Tensor | float
Formula = Callable[..., tuple[Tensor, ...]]


class _WithGradient(torch.autograd.Function):
    """The values that a formula returns, which are differentiated by the student's logits."""

    @staticmethod
    def forward(formula: Formula, *inputs: Any) -> tuple[Tensor, ...]:
        return formula(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        gradients = output[len(output) // 2 :]
        ctx.mark_non_differentiable(*gradients)
        ctx.save_for_backward(*gradients)
        ctx.inputs = len(inputs)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, tuple[int, ...]]:
        """Map over members: their axis comes first."""
        formula, z, v, *numbers = (
            x if dim is None else x.movedim(dim, 0) for x, dim in zip(inputs, dims, strict=True)
        )
        z = z if dims[1] is not None else z.expand(info.batch_size, *z.shape)
        v = v if dims[2] is None or v.dim() == z.dim() else v.unsqueeze(1)
        numbers = [
            n if dim is None else n.reshape(-1, *[1] * (z.dim() - 1))
            for n, dim in zip(numbers, dims[3:], strict=True)
        ]
        found = _WithGradient.apply(formula, z, v, *numbers)
        return found, (0,) * len(found)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        if any(ctx.needs_input_grad[2:]):
            raise NotImplementedError("it has a gradient by student_logits and its weights alone")
        parts = []
        for value, gradient in zip(outer, ctx.saved_tensors, strict=False):
            weight = value.unsqueeze(-1)
            parts.append((weight * gradient).masked_fill_(weight == 0, 0))
        return None, sum(parts[1:], start=parts[0]), *[None] * (ctx.inputs - 2)


def softened(formula: Formula, student: Tensor, teacher: Tensor, *numbers: Number) -> Any:
    """What a ``formula`` says of logits (B, C): its value (B,), or a tuple of its values.

    Example:
        >>> z, v = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> softened(kl, z, v, 1e6), softened(reverse, z, v, 1e6)
        (tensor([0.5000]), tensor([0.5000]))
    """
    found = _WithGradient.apply(formula, student, teacher, *numbers)
    return found[0] if len(found) == 2 else found[: len(found) // 2]


def kl(student: Tensor, teacher: Tensor, t: Number) -> tuple[Tensor, ...]:
    """``T^2 KL(p || q)``."""
    z = student.mT
    p, u, near, _, _ = _apart(teacher.mT.contiguous(), z, t)
    value, gradient = _divergence(p, u, t, lambda: (near / t, _near(z) / t))
    return value.squeeze(-2), gradient.mT


def reverse(student: Tensor, teacher: Tensor, t: Number) -> tuple[Tensor, ...]:
    """``T^2 KL(q || p)``; its gradient q (w - E_q w) is as exact as w."""
    v = teacher.mT.contiguous()
    q, u, near, _, _ = _apart(student.mT, v, t)
    value, _ = _divergence(q, u, t, lambda: (near / t, _near(v) / t))
    return value.squeeze(-2), q.mul_(u).neg_().mT


def jensen_shannon(student: Tensor, teacher: Tensor, t: Number, beta: Tensor) -> tuple[Tensor, ...]:
    """``T^2 / (beta (1 - beta))`` times beta KL(p || m) + (1 - beta) KL(q || m).

    Here m = beta p + (1 - beta) q. At beta 0 it is the limit, `kl`, and at beta 1 `reverse`.
    """
    z, v = student.mT, teacher.mT.contiguous()
    q, u, _, _, at = _apart(z, v, t)
    p = F.softmax(_near(v) / t, -2)
    ratio = _log_ratio(q, u, z, v, t)  # log p / q
    of_q = ratio.expm1().mul_(beta).log1p_()  # log m / q
    of_p = of_q - ratio  # log m / p
    far = (ratio.abs() > 20) | ((beta > 0.9) & (ratio < -1))
    if far.is_cuda or far.any():
        own, other = beta.log(), (-beta).log1p()
        of_q = torch.where(far, torch.logaddexp(other, own + ratio), of_q)
        of_p = torch.where(far, torch.logaddexp(own, other - ratio), of_p)
    m = beta * p + (1 - beta) * q
    value = _spread(p, of_p, m, t) / (1 - beta) + _spread(q, of_q, m, t) / beta
    near = of_q - _at(of_q, at.top)
    gradient = (near - (q * near).sum(-2, keepdim=True)).mul_(q).mul_(-t / beta)
    made = value.squeeze(-2), gradient.mT
    for end, formula in ((0.0, kl), (1.0, reverse)):
        there = beta == end
        if there.is_cuda or there.any():
            value, gradient = formula(student, teacher, t)
            each = there if there.dim() == 0 else there[..., 0]
            made = torch.where(each, value, made[0]), torch.where(there, gradient, made[1])
    return made


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, t: Number) -> tuple[Tensor, ...]:
    """``T^2 KL`` of the label's class against the others, and ``T^2 KL`` among the others.

    Of logits z the first sees b = z_label / T - log sum exp(z_others / T), and with the second

        T (b_q - b_p) = w_label - E_p w - T KL,

    of the others' p, w and KL, of which no term grows with T.
    """
    z, v = student.mT, teacher.mT.contiguous()
    z_own, z_others = _split(z, labels)
    v_own, v_others = _split(v, labels)
    p, u, near, mean, at = _apart(v_others, z_others, t)
    among, gradient = _divergence(p, u, t, lambda: (near / t, _near(z_others) / t))
    apart = (z_own - at.other) - (v_own - at.base) - mean - among / t
    against, slope = _against(apart, _odds(v_own, v_others, t), _odds(z_own, z_others, t), t)
    own = slope * -(p + gradient / t)
    return (
        against.squeeze(-2),
        among.squeeze(-2),
        _joined(slope, own, labels).mT,
        _joined(torch.zeros_like(slope), gradient, labels).mT,
    )


def entropy(logits: Tensor, t: Number) -> Tensor:
    """The entropy (B,) of the softmax of logits (B, C) over T, in nats."""
    logs = F.log_softmax(logits.mT / t, -2)
    return -(logs.exp() * logs).sum(-2)


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits (B, C) those of the classes (B, C - 1) besides the label's."""
    return _split(logits.mT, labels)[1].mT


def _near(logits: Tensor) -> Tensor:
    """Logits (..., C, B), of which the largest is 0."""
    return logits - logits.amax(-2, keepdim=True)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    """Of logits (..., C, B) those of one class for each example (..., 1, B)."""
    many = max(logits.shape[:-2], classes.shape[:-2], key=len)
    place = classes.expand(*many, *classes.shape[-2:])
    return logits.expand(*many, *logits.shape[-2:]).gather(-2, place)


class _Top(NamedTuple):
    """Where the base has its largest logit, and what it and the other have there (..., 1, B)."""

    top: Tensor
    base: Tensor
    other: Tensor


def _apart(base: Tensor, other: Tensor, t: Number) -> tuple[Tensor, Tensor, Tensor, Tensor, _Top]:
    """Of logits (..., C, B): p of the ``base``, and how far the ``other`` is from it.

    That is centred by p, so that it is exact where one class has nearly all of p. Besides, the base
    with its largest logit at 0; and what was taken off, the mean, beyond what both have there.
    """
    largest, top = base.max(-2, keepdim=True)
    near = base - largest
    p = F.softmax(near / t, -2)
    there = _at(other, top)
    u = (other - there).sub_(near)
    mean = (p * u).sum(-2, keepdim=True)
    return p, u.sub_(mean), near, mean, _Top(top, largest, there)


def _growth(p: Tensor, u: Tensor, t: Number) -> tuple[Tensor, Tensor]:
    """T (exp(x) - 1), and T E_p phi (..., 1, B), with x = u / T."""
    x = u / t
    growth = x.expm1().mul_(t)
    series = (x / 6).add_(0.5).mul_(x).mul_(u)
    small = x.abs() < torch.finfo(x.dtype).eps ** (1 / 3)
    return growth, torch.where(small, series, growth - u).mul_(p).sum(-2, keepdim=True)


def _divergence(
    p: Tensor, u: Tensor, t: Number, plain: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """T^2 KL (..., 1, B) from p to what is ``u`` away from it, and T times the difference.

    ``plain`` gives the logits of both over T, the largest of which are 0.
    """
    growth, s = _growth(p, u, t)
    y = s / t
    value = t * s * torch.where(y > torch.finfo(y.dtype).eps, y.log1p() / y, 1.0)
    gradient = growth.sub_(s).mul_(p).div_(1 + y)
    steep = ~y.isfinite()
    if u.is_cuda or steep.any():  # rare, and on a GPU it would take longer to ask
        own, other = plain()
        q = F.softmax(other, -2)
        scale = (p.amax(-2, keepdim=True) / q.amax(-2, keepdim=True)).log()
        found = scale + (p * (own - other)).sum(-2, keepdim=True)
        value = torch.where(steep, t * (t * found.clamp(min=0)), value)
        gradient = torch.where(steep, t * (q - p), gradient)
    return value, gradient


def _log_ratio(q: Tensor, u: Tensor, z: Tensor, v: Tensor, t: Number) -> Tensor:
    """log p / q of logits v and z (..., C, B) over T, where v - z centred by q is ``u``."""
    y = _growth(q, u, t)[1] / t
    ratio = u / t - y.log1p()
    steep = ~y.isfinite()
    if u.is_cuda or steep.any():
        plain = F.log_softmax(_near(v) / t, -2) - F.log_softmax(_near(z) / t, -2)
        ratio = torch.where(steep, plain, ratio)
    return ratio


def _spread(p: Tensor, log: Tensor, m: Tensor, t: Number) -> Tensor:
    """T^2 KL(p || m) (..., 1, B) as T^2 E_p (m / p - 1 - log m / p), by whose ``log`` it is."""
    series = (log / 720).add_(1 / 120).mul_(log).add_(1 / 24).mul_(log).add_(1 / 6)
    series = series.mul_(log).add_(0.5).mul_(p).mul_(t * log).mul_(t * log)
    plain = (m - p - p * log).mul_(t).mul_(t)
    return torch.where(log.abs() < 0.1, series, plain).sum(-2, keepdim=True)


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of the label's class (..., 1, B), and those of the others (..., C - 1, B)."""
    others = logits.shape[-2] - 1
    after = torch.arange(others, device=labels.device).unsqueeze(-1) >= labels
    return _at(logits, labels.unsqueeze(0)), torch.where(
        after, logits[..., 1:, :], logits[..., :-1, :]
    )


def _joined(own: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """What `_split` took apart."""
    classes = torch.arange(others.shape[-2] + 1, device=labels.device).unsqueeze(-1)
    after, before = torch.cat([own, others], -2), torch.cat([others, own], -2)
    return torch.where(classes == labels, own, torch.where(classes < labels, before, after))


def _odds(own: Tensor, others: Tensor, t: Number) -> Tensor:
    """The logarithm of a class's odds against the others, of logits over T."""
    largest = others.amax(-2, keepdim=True)
    return (own - largest) / t - torch.logsumexp((others - largest) / t, -2, keepdim=True)


def _against(apart: Tensor, b_p: Tensor, b_q: Tensor, t: Number) -> tuple[Tensor, Tensor]:
    """T^2 KL of two classes, by their log odds and T (b_q - b_p), and T (q - p) of the first."""

    def both(odds: Tensor) -> Tensor:
        return _near(torch.cat([odds, torch.zeros_like(odds)], -2))

    p = F.softmax(both(b_p), -2)
    u = torch.cat([p[..., 1:, :] * apart, -p[..., :1, :] * apart], -2)
    value, gradient = _divergence(p, u, t, lambda: (both(b_p), both(b_q)))
    return value, gradient[..., :1, :]
