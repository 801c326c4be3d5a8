"""Losses of how the examples of a batch lie to each other, in features of student and teacher.

Features of any shape are taken as vectors (B, D); their D may differ. Each loss is one value for
the batch. Letters: B examples, C classes; s and t of student and teacher.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from distill.losses.labels import hard

TINY = 1e-12  # a distance, which is taken for none
EPS = 1e-7  # added to probabilities


def sp(
    student_logits: Tensor,
    labels: Tensor,
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    beta: NonNegativeFloat = 3000.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Similarity-preserving: ``CE + beta sum_l |G(s_l) - G(t_l)|_F^2 / B^2``.

    G are the products of all pairs of vectors, each row divided by its Euclidean norm. Tung and
    Mori (2019), "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682; beta is of the
    comparison of Tian et al. (2020, arXiv 1910.10699), with features of the last convolutions.

    Args:
        student_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        student_features: (B, ...), one for each of the teacher's.
        teacher_features: (B, ...).
        beta: the weight of the similarities.

    Returns:
        (), and its terms ``soft``, of the similarities, and ``hard``, CE in nats.

    Example:
        >>> s = torch.rand(4, 3)
        >>> _, terms = sp(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), [s], [3 * s])
        >>> terms["soft"] < 1e-12
        tensor(True)
    """

    def similar(f: Tensor) -> Tensor:
        return F.normalize(f @ f.mT)

    soft = _summed(
        lambda s, t: (similar(s) - similar(t)).square().mean(), student_features, teacher_features
    )
    labelled = hard(student_logits, labels).mean()
    return labelled + beta * soft, {"soft": soft, "hard": labelled}


def rkd(
    student_logits: Tensor,
    labels: Tensor,
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    distance: NonNegativeFloat = 25.0,
    angle: NonNegativeFloat = 50.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Relational: ``CE + distance L_D + angle L_A``, summed over the features.

    L_D is the mean Huber loss, over all pairs, of their distances, divided by the mean of those
    that are not 0; L_A that, over all triples, of the cosines of the angles at their first. Park et
    al. (2019), "Relational Knowledge Distillation", arXiv 1904.05068, with means over B^2 and B^3,
    and the weights, of the comparison of Tian et al. (2020, arXiv 1910.10699). All triples take B^3
    numbers.

    Args:
        student_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        student_features: (B, ...), one for each of the teacher's.
        teacher_features: (B, ...).
        distance: the weight of the distances.
        angle: the weight of the angles.

    Returns:
        (), and its terms ``distance``, ``angle``, and ``hard``, CE in nats.

    Example:
        >>> s = torch.rand(4, 3)
        >>> _, terms = rkd(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), [s], [3 * s])
        >>> terms["distance"] < 1e-12, terms["angle"] < 1e-12
        (tensor(True), tensor(True))
    """

    def lengths(f: Tensor) -> Tensor:
        d: Tensor = torch.linalg.vector_norm(_differences(f), dim=-1)
        mean = d.sum() / (d > 0).sum().clamp(min=1)
        return d / mean.clamp(min=TINY)

    def angles(f: Tensor) -> Tensor:
        e = F.normalize(_differences(f), dim=-1)
        return torch.matmul(e, e.mT)

    pairs = (student_features, teacher_features)
    far = _summed(lambda s, t: F.smooth_l1_loss(lengths(s), lengths(t)), *pairs)
    turned = _summed(lambda s, t: F.smooth_l1_loss(angles(s), angles(t)), *pairs)
    labelled = hard(student_logits, labels).mean()
    total = labelled + distance * far + angle * turned
    return total, {"distance": far, "angle": turned, "hard": labelled}


def pkt(
    student_logits: Tensor,
    labels: Tensor,
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    beta: NonNegativeFloat = 30000.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Probabilistic transfer: ``CE + beta sum_l mean_ij p_ij log(p_ij / q_ij)``.

    p and q of teacher and student are the cosines of all pairs of vectors, scaled to lie from 0 to
    1, each row divided by its sum. Passalis and Tefas (2018), "Learning Deep Representations with
    Probabilistic Knowledge Transfer", arXiv 1803.10837, with the mean over B^2, and 1e-7 added to p
    and q in the logarithm; beta is of the comparison of Tian et al. (2020, arXiv 1910.10699).

    Args:
        student_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        student_features: (B, ...), one for each of the teacher's.
        teacher_features: (B, ...).
        beta: the weight of the divergence.

    Returns:
        (), and its terms ``soft``, of the divergence, and ``hard``, CE in nats.

    Example:
        >>> s = torch.rand(4, 3)
        >>> _, terms = pkt(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), [s], [s])
        >>> terms["soft"]
        tensor(0.)
    """

    def shares(f: Tensor) -> Tensor:
        e = F.normalize(f)
        near = (e @ e.mT + 1) / 2
        return near / near.sum(-1, keepdim=True)

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        q, p = shares(student), shares(teacher)
        return (p * ((p + EPS) / (q + EPS)).log()).mean()

    soft = _summed(divergence, student_features, teacher_features)
    labelled = hard(student_logits, labels).mean()
    return labelled + beta * soft, {"soft": soft, "hard": labelled}


def _summed(
    of: Callable[[Tensor, Tensor], Tensor], student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Tensor:
    """The sum of what is found ``of`` each pair of features, as vectors."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([of(s.flatten(1), t.flatten(1)) for s, t in pairs]).sum()


def _differences(f: Tensor) -> Tensor:
    """The differences (B, B, D) of all pairs of vectors (B, D): from the first to the second."""
    return f.unsqueeze(0) - f.unsqueeze(1)
