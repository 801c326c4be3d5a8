"""A soft term whose weight is another for each example.

Letters: B examples in a batch, C classes, T temperature.
"""

import torch
from torch import Tensor

from distill.losses.labels import hard as cross_entropy
from distill.losses.mixing import ClassWeights, Factor, Smoothing, Temperature, weighed
from distill.losses.softened import entropy, kl, softened

EPSILON = 1e-7  # beside the teacher's cross-entropy, as in the authors' code


def wsld(
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
    """Weighted soft labels: ``hard CE + alpha T^2 (1 - exp(-CE_s / CE_t)) CE(p, q)``.

    p and q are as in `kd`; CE_s and CE_t are the cross-entropies of student and teacher with the
    label at temperature 1. An example that the student knows better than its teacher counts less.
    The weight has no gradient (Zhou et al. 2021, arXiv 2102.00650; T = 2, alpha = 2.5,
    hard = 1, and 1e-7 beside CE_t). The weights are the paper's, and need not have the sum 1. The
    gradient is that of a weighted divergence, the value is larger by the entropy of p.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1; or shares of the classes, (B, C).
        temperature: T; its square is a factor of an entropy, which float32 holds up to T = 1e18.
        alpha: the weight of the soft term.
        hard: the weight of CE.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, all of it but alpha, and ``hard``, CE.

    Example:
        >>> z, v = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> wsld(z, v, torch.tensor([0]), temperature=1.0, alpha=2.5, hard=1.0)[1]
        {'soft': tensor([0.6173]), 'hard': tensor([0.6931])}
    """
    ratio = _surprise(student_logits.detach(), labels)
    ratio = ratio / (_surprise(teacher_logits, labels) + EPSILON)
    divergence = softened(kl, student_logits, teacher_logits, temperature)
    rest = temperature * (temperature * entropy(teacher_logits, temperature))
    soft = -torch.expm1(-ratio) * (divergence + rest)
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    total = weighed(alpha, soft) + weighed(hard, labelled)
    return total, {"soft": soft, "hard": labelled}


def _surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (B,) with labels, to all digits where it is nearly 0, which ratios need."""
    z = logits.mT
    largest, top = z.max(-2, keepdim=True)
    z = z - largest
    rest = z.exp().scatter(-2, top, 0.0).sum(-2)  # of the classes but the likeliest
    if labels.is_floating_point():
        own = (labels.mT * z).sum(-2)
    else:
        own = torch.take_along_dim(z, labels.unsqueeze(-2), -2).squeeze(-2)
    return rest.log1p() - own
