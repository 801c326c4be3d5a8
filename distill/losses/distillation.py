"""Knowledge distillation: the divergence of softened distributions.

Letters: B examples in a batch, C classes, T temperature.
"""

import torch
from torch import Tensor

from distill.losses.labels import hard as cross_entropy
from distill.losses.mixing import (
    ClassWeights,
    Factor,
    Smoothing,
    Temperature,
    Weight,
    mixed,
    weighed,
)
from distill.losses.softened import kl, softened

EPSILON = 1e-7  # beside the standard deviation of logits, as in the authors' code


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
        alpha: the weight of the soft term, from 0 to 1 (in torchdistill, alpha is that of CE).
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, T^2 KL(p || q), and ``hard``, CE.

    Example:
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> total, terms = kd(z, z, torch.tensor([0]), temperature=4.0, alpha=0.5)
        >>> terms["soft"], terms["hard"]
        (tensor([0.]), tensor([0.1269]))
    """
    soft = softened(kl, student_logits, teacher_logits, temperature)
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    return mixed(alpha, soft, labelled), {"soft": soft, "hard": labelled}


def standardised_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    temperature: Temperature,
    alpha: Factor,
    hard: Factor,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`kd` of standardised logits: ``alpha T^2 KL(p || q) + hard CE``.

    The logits of each example are made to have mean 0 and deviation 1 over the classes before they
    are divided by T: (z - mean) / (std + 1e-7), with the unbiased deviation, so that a student need
    not reach the scale of its teacher's (Sun et al. 2024, arXiv 2403.01427; T = 2, alpha = 9,
    hard = 0.1). The weights are the paper's, and need not have the sum 1.

    Args:
        student_logits: (B, C), of 3 classes or more: of two, all standardised logits are alike.
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        temperature: T, from 1e-6 to 1e30.
        alpha: the weight of the soft term.
        hard: the weight of CE.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, T^2 KL(p || q), and ``hard``, CE.

    Raises:
        ValueError: there are two classes.

    Example:
        >>> z, v = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[30.0, 10.0, 20.0]])
        >>> options = {"temperature": 2.0, "alpha": 9.0, "hard": 0.1}
        >>> standardised_kd(z, v, torch.tensor([0]), **options)[1]["soft"] < 1e-12
        tensor([True])
    """
    if student_logits.shape[-1] == 2:
        raise ValueError(
            "standardised, the logits of two classes are always 0.71 and -0.71; choose another loss"
        )
    z, v = _standardised(student_logits), _standardised(teacher_logits)
    soft = softened(kl, z, v, temperature)
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    total = weighed(alpha, soft) + weighed(hard, labelled)
    return total, {"soft": soft, "hard": labelled}


def _standardised(logits: Tensor) -> Tensor:
    """Logits (B, C) of mean 0 and deviation 1 over the classes; those that are all equal are 0."""
    z = logits.mT
    z = z - z.detach().amax(-2, keepdim=True)  # so that the mean of equal logits is exact
    z = z - z.mean(-2, keepdim=True)
    variance = z.square().sum(-2, keepdim=True) / (z.shape[-2] - 1)
    varied = variance > 0
    deviation = torch.where(varied, torch.where(varied, variance, 1.0).sqrt(), 0.0)
    return (z / (deviation + EPSILON)).mT
