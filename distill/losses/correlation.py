"""Correlations of what teacher and student say, instead of divergences.

Letters: B examples in a batch, C classes, T temperature.
"""

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
    z, v = _deviation(student_logits, temperature), _deviation(teacher_logits, temperature)
    size = EPSILON * (temperature * student_logits.shape[-1]) ** 2
    square = temperature * temperature
    classes = square * (1 - _correlation(z, v, size, -2))
    batch = square * (1 - _correlation(z, v, size, -1))
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    ).mean()
    total = weighed(beta, classes) + weighed(gamma, batch) + weighed(hard, labelled)
    return total, {"classes": classes, "batch": batch, "hard": labelled}


def _deviation(logits: Tensor, t: Tensor | float) -> Tensor:
    """C T (p - 1 / C) of p = softmax(logits / T), as (C, B), exact where p is nearly uniform.

    With logits z of mean 0 and g = T (exp(z / T) - 1), it is (g - mean g) / (1 + mean g / T).
    """
    z = logits.mT
    plain = (z / t).softmax(-2) * (t * z.shape[-2]) - t
    with torch.no_grad():
        z = z - z.mean(-2, keepdim=True)
        x = z / t
        growth = x.clamp(max=1).expm1() * t
        mean = growth.mean(-2, keepdim=True)
        near = (growth - mean) / (1 + mean / t)
        exact = torch.where(x.abs().amax(-2, keepdim=True) < 0.1, near, plain)
    return plain + (exact - plain).detach()


def _correlation(a: Tensor, b: Tensor, size: Tensor | float, dim: int) -> Tensor:
    """The mean of Pearson's correlations over ``dim``, damped for products of norms near ``size``.

    The norm of numbers that are all equal has no gradient here.
    """
    a, b = (x - x.mean(dim, keepdim=True) for x in (a, b))
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    correlations: Tensor = (a * b).sum(dim) / (norms + size)
    return correlations.mean(-1)
