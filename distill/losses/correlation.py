"""Correlations of what teacher and student say, instead of divergences.

Letters: B examples in a batch, C classes, T temperature.
"""

from typing import Any

import torch
from torch import Tensor

from distill.losses.labels import hard as cross_entropy
from distill.losses.mixing import ClassWeights, Factor, Smoothing, Temperature, weighed

EPSILON = 1e-8  # beside the product of two norms, as in the authors' code


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    temperature: Temperature,
    beta: Factor,
    gamma: Factor,
    hard: Factor,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Correlations: ``hard CE + T^2 (beta (1 - mean_b r_b) + gamma (1 - mean_c r_c))``.

    r_b is Pearson's correlation of p and q, as in `kd`, over the classes of an example, and r_c
    that of the probabilities of a class over the examples of the batch (Huang et al. 2022, arXiv
    2205.10536; hard = 1, beta = gamma = 2, T = 4 on CIFAR-100 and 1 on ImageNet;
    the factor T^2, and 1e-8 beside the product of the norms, as in the authors' code, so that a
    class of which no example of the batch has a part worth mentioning does not count). The weights
    are the paper's, and need not have the sum 1.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1; or shares of the classes, (B, C).
        temperature: T; its square is a factor, which float32 holds up to T = 1e18.
        beta: the weight of the correlations over classes.
        gamma: the weight of the correlations over the batch.
        hard: the weight of CE.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (), since it couples the examples of a batch, and its terms ``classes`` and ``batch``, times
        T^2, and ``hard``, the mean of CE.

    Example:
        >>> z, v = torch.eye(3), 2 * torch.eye(3)
        >>> options = {"temperature": 1.0, "beta": 2.0, "gamma": 2.0, "hard": 1.0}
        >>> dist(z, v, torch.arange(3), **options)[1]["batch"].abs() < 1e-6
        tensor(True)
    """
    z, v = (_Deviation.apply(x, temperature)[0] for x in (student_logits, teacher_logits))
    size = EPSILON * (temperature * student_logits.shape[-1]) ** 2
    square = temperature * temperature
    classes = square * (1 - _correlation(z, v, size, -2))  # over which both have mean 0
    z, v = (x - x.mean(-1, keepdim=True) for x in (z, v))
    batch = square * (1 - _correlation(z, v, size, -1))
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    ).mean()
    total = weighed(beta, classes) + weighed(gamma, batch) + weighed(hard, labelled)
    return total, {"classes": classes, "batch": batch, "hard": labelled}


class _Deviation(torch.autograd.Function):
    """C T (p - 1 / C) of p = softmax(logits / T), as (..., C, B), exact where p is nearly uniform.

    There, with g = T (exp(z / T) - 1) of logits z of mean 0, it is (g - mean g) / (1 + mean g / T).
    """

    @staticmethod
    def forward(logits: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        z = logits.mT
        p = (z / t).softmax(-2) * z.shape[-2]
        found = (p - 1).mul_(t)
        small = found.abs().amax(-2, keepdim=True) < 0.1 * t
        if z.is_cuda or small.any():  # on a GPU it would take longer to ask
            growth = ((z - z.mean(-2, keepdim=True)) / t).expm1_().mul_(t)
            mean = growth.mean(-2, keepdim=True)
            found = torch.where(small, (growth - mean) / (1 + mean / t), found)
        return found, p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG004
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], logits: Tensor, t: Tensor | float
    ) -> tuple[Any, tuple[int, int]]:
        """Map over members: their axis comes first."""
        z = logits if dims[0] is None else logits.movedim(dims[0], 0)
        z = z if dims[0] is not None else z.expand(info.batch_size, *z.shape)
        if isinstance(t, Tensor) and dims[1] is not None:
            t = t.movedim(dims[1], 0).reshape(-1, *[1] * (z.dim() - 1))
        return _Deviation.apply(z, t), (0, 0)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        weighed = outer[0] * p
        return (weighed - p * weighed.mean(-2, keepdim=True)).mT, None


def _correlation(a: Tensor, b: Tensor, size: Tensor | float, dim: int) -> Tensor:
    """The mean of correlations over ``dim``, damped for products of norms near ``size``."""
    correlations: Tensor = (a * b).sum(dim) / (_norm(a, dim) * _norm(b, dim) + size)
    return correlations.mean(-1)


def _norm(numbers: Tensor, dim: int) -> Tensor:
    """The norm over ``dim``, with no gradient where it is 0; torch's own is slow over classes."""
    square = (numbers * numbers).sum(dim)
    some = square > 0
    return torch.where(some, square, 1.0).sqrt() * some
