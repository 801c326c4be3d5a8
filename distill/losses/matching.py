"""Matching of logits."""

from torch import Tensor

from distill.losses.labels import hard
from distill.losses.mixing import ClassWeights, Smoothing, Weight, mixed


def logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    alpha: Weight,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logit matching: ``alpha / (2 C) |z - v|^2 + (1 - alpha) CE``.

    z and v are the logits of student and teacher, each zero-meaned over the classes. Its soft term
    is the limit of that of `kd` for T to infinity (the paper, section 2.1, times T^2).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        alpha: the weight of the soft term, from 0 to 1.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), and its terms ``soft``, |z - v|^2 / (2 C), and ``hard``, CE in nats.

    Example:
        >>> z, v = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 0.0]])
        >>> logits(z, v, torch.tensor([0]), alpha=1.0)[0]
        tensor([0.5000])
    """
    z = student_logits - student_logits.mean(-1, keepdim=True)
    v = teacher_logits - teacher_logits.mean(-1, keepdim=True)
    soft = (z - v).square().mean(-1) / 2
    labelled = hard(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    return mixed(alpha, soft, labelled), {"soft": soft, "hard": labelled}


def mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    alpha: Weight,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of logits: ``alpha / C |z - v|^2 + (1 - alpha) CE``.

    z and v are the logits of student and teacher as they are, so that the student learns their
    mean, too; beside `logits` there is no factor 1/2 (Kim et al. 2021, arXiv 2105.08919; the mean
    over classes is that of the authors' code; alpha = 1).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        alpha: the weight of the soft term, from 0 to 1.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), and its terms ``soft``, |z - v|^2 / C, and ``hard``, CE in nats.

    Example:
        >>> z, v = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])
        >>> mse(z, v, torch.tensor([0]), alpha=1.0)[0]
        tensor([1.])
    """
    soft = (student_logits - teacher_logits).square().mean(-1)
    labelled = hard(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    return mixed(alpha, soft, labelled), {"soft": soft, "hard": labelled}
