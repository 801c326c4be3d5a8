"""Losses that tell the class of the label from the others.

Letters: B examples in a batch, C classes, T temperature.
"""

import torch
from torch import Tensor

from distill.losses.labels import hard as cross_entropy
from distill.losses.mixing import (
    ClassWeights,
    Factor,
    Share,
    Smoothing,
    Temperature,
    weighed,
)
from distill.losses.softened import decoupled, entropy, others, softened


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    progress: float,
    class_counts: Tensor | None = None,
    *,
    temperature: Temperature,
    alpha: Factor,
    beta: Factor,
    hard: Factor,
    warmup: Share,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Decoupled distillation: ``hard CE + T^2 (alpha TCKD + beta NCKD)``.

    With p and q as in `kd`, TCKD is the divergence of (p_t, 1 - p_t) from (q_t, 1 - q_t) for the
    class t of the label, and NCKD that of the softmax over the other C - 1 classes, so that
    KL(p || q) = TCKD + (1 - p_t) NCKD. Both rise from 0 during the ``warmup`` (Zhao et al. 2022,
    arXiv 2203.08679; T = 4, alpha = 1, hard = 1, beta = 8, or 2 or 6 by the pair of
    networks, and a warm-up of 20 of 240 epochs, 1/12). The weights are the paper's, and need not
    have the sum 1.

    Args:
        student_logits: (B, C), of 3 classes or more.
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        progress: the share of the training that is done.
        temperature: T, from 1e-6 to 1e30.
        alpha: the weight of TCKD.
        beta: the weight of NCKD.
        hard: the weight of CE.
        warmup: the share of the training in which TCKD and NCKD rise to these; 0: none.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``tckd`` and ``nckd``, times T^2, and ``hard``, CE.

    Raises:
        ValueError: there are two classes, or several classes in a label.

    Example:
        >>> z, v = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> weights = {"alpha": 1.0, "beta": 8.0, "hard": 1.0, "warmup": 0.0}
        >>> dkd(z, v, torch.tensor([0]), 0.5, temperature=1.0, **weights)[1]
        {'tckd': tensor([0.0395]), 'nckd': tensor([0.1109]), 'hard': tensor([0.2395])}
    """
    _check(student_logits, labels)
    tckd, nckd = softened(decoupled, student_logits, teacher_logits, labels, temperature)
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    # Without a warm-up this is 1, as it is at its end.
    risen = torch.as_tensor((progress + 1e-30) / (warmup + 1e-30)).clamp(max=1)
    soft = weighed(alpha * risen, tckd) + weighed(beta * risen, nckd)
    return soft + weighed(hard, labelled), {"tckd": tckd, "nckd": nckd, "hard": labelled}


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    temperature: Temperature,
    gamma: Factor,
    hard: Factor,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Normalised distillation: ``hard CE - p_t log q_t + gamma T^2 CE(p', q')``.

    p_t and q_t are teacher's and student's probabilities of the label's class at temperature 1; p'
    and q' are the softmax over T of the other C - 1 classes, which has the sum 1 for both (Yang et
    al. 2023, arXiv 2303.13005; T = 1, gamma = 1.5, hard = 1). The weights are the
    paper's, and need not have the sum 1. The gradient is that of divergences, the value is larger
    by the entropy of p'.

    Args:
        student_logits: (B, C), of 3 classes or more.
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        temperature: T; its square is a factor of an entropy, which float32 holds up to T = 1e18.
        gamma: the weight of the other classes.
        hard: the weight of CE.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``target``, -p_t log q_t, ``others``, T^2 CE(p', q'), and
        ``hard``, CE.

    Raises:
        ValueError: there are two classes, or several classes in a label.

    Example:
        >>> z, v = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> nkd(z, v, torch.tensor([0]), temperature=1.0, gamma=1.5, hard=1.0)[1]
        {'target': tensor([0.1594]), 'others': tensor([0.6931]), 'hard': tensor([0.2395])}
    """
    _check(student_logits, labels)
    _, nckd = softened(decoupled, student_logits, teacher_logits, labels, temperature)
    among = entropy(others(teacher_logits, labels), temperature)
    p_t = teacher_logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    labelled = cross_entropy(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    plain = smoothing is None and class_weights is None
    target = p_t * (labelled if plain else cross_entropy(student_logits, labels))
    rest = nckd + temperature * (temperature * among)
    total = target + weighed(gamma, rest) + weighed(hard, labelled)
    return total, {"target": target, "others": rest, "hard": labelled}


def _check(logits: Tensor, labels: Tensor) -> None:
    """See that there are classes beside that of the label.

    Raises:
        ValueError: there are not.
    """
    if logits.shape[-1] == 2:
        raise ValueError("it compares the classes besides the label's, and of two that is one")
    if labels.is_floating_point():
        raise ValueError("it needs one class for each example, and labels are shares of several")
