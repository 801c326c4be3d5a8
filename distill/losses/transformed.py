"""Temperature for the teacher alone, as a power of its probabilities.

Letters: B examples in a batch, C classes.
"""

from torch import Tensor

from distill.losses.labels import hard as cross_entropy
from distill.losses.mixing import ClassWeights, Factor, Smoothing, Weight, weighed
from distill.losses.softened import kl, softened


def ttm(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    gamma: Weight,
    beta: Factor,
    hard: Factor,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Transformed teacher matching: ``hard CE + beta KL(p^gamma / Z || q)``.

    p and q are the softmax of the teacher's and student's logits, and Z the sum of p^gamma, so that
    the teacher is softened by T = 1 / gamma and the student is not; there is no factor T^2 (Zheng
    and Yang 2024, arXiv 2402.11148; hard = 1, gamma 0.1 to 0.2; beta differs by the pair
    of networks, and is 45 with gamma = 0.1 in the example of the authors' code). The weights need
    not have the sum 1.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        gamma: the power, from 0 to 1.
        beta: the weight of the soft term.
        hard: the weight of CE.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, the divergence, and ``hard``, CE.

    Example:
        >>> z, v = torch.tensor([[2.0, 0.0]]), torch.tensor([[20.0, 0.0]])
        >>> ttm(z, v, torch.tensor([0]), gamma=0.1, beta=45.0, hard=1.0)[1]
        {'soft': tensor([0.]), 'hard': tensor([0.1269])}
    """
    soft = softened(kl, student_logits, gamma * teacher_logits, 1.0)
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    total = weighed(beta, soft) + weighed(hard, labelled)
    return total, {"soft": soft, "hard": labelled}


def wttm(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    gamma: Weight,
    beta: Factor,
    hard: Factor,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted `ttm`: ``hard CE + beta Z KL(p^gamma / Z || q)``.

    Z, the sum of p^gamma, is larger for examples of which the teacher is less certain (Zheng and
    Yang 2024, arXiv 2402.11148; in the example of the authors' code gamma = 0.2 and
    beta = 4). The weights need not have the sum 1.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        gamma: the power, from 0 to 1.
        beta: the weight of the soft term.
        hard: the weight of CE.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, Z times the divergence, and ``hard``, CE.

    Example:
        >>> z, v = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> wttm(z, v, torch.tensor([0]), gamma=0.2, beta=4.0, hard=1.0)[1]
        {'soft': tensor([0.0319]), 'hard': tensor([0.6931])}
    """
    softer = gamma * teacher_logits
    power = (softer.logsumexp(-1) - gamma * teacher_logits.logsumexp(-1)).exp()
    soft = power * softened(kl, student_logits, softer, 1.0)
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    total = weighed(beta, soft) + weighed(hard, labelled)
    return total, {"soft": soft, "hard": labelled}
