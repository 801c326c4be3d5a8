"""Other divergences of the softened distributions of teacher and student.

Letters: B examples in a batch, C classes, T temperature.
"""

from torch import Tensor

from distill.losses.labels import hard
from distill.losses.mixing import ClassWeights, Smoothing, Temperature, Weight, mixed
from distill.losses.softened import jensen_shannon, reverse, softened


def reverse_kl(
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
    """Reverse divergence: ``alpha T^2 KL(q || p) + (1 - alpha) CE``.

    p and q are as in `kd`. A student that cannot say all that its teacher says leaves out what it
    says least, where `kd` spreads over it (Agarwal et al. 2023, arXiv 2306.13649, which uses no
    labels: alpha = 1, T = 1). The factor T^2 is that of `kd`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        temperature: T, from 1e-6 to 1e30.
        alpha: the weight of the soft term, from 0 to 1.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, T^2 KL(q || p), and ``hard``, CE.

    Example:
        >>> z, v = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> reverse_kl(z, v, torch.tensor([0]), temperature=1.0, alpha=1.0)[0]
        tensor([0.4338])
    """
    soft = softened(reverse, student_logits, teacher_logits, temperature)
    labelled = hard(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    return mixed(alpha, soft, labelled), {"soft": soft, "hard": labelled}


def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    temperature: Temperature,
    beta: Weight,
    alpha: Weight,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Jensen-Shannon divergence: ``alpha T^2 JSD / (beta (1 - beta)) + (1 - alpha) CE``.

    JSD = beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, and p and q as in
    `kd`, is the generalised one of Agarwal et al. 2023 (arXiv 2306.13649, which uses no labels:
    alpha = 1, T = 1). By itself it goes to 0 at both ends of beta. Divided by beta (1 - beta), 1/4
    in the middle, it goes to KL(p || q) at beta 0, where it is that, the soft term of `kd`; to
    KL(q || p) at beta 1; and for T to infinity to the same for every beta. The factor T^2 is that
    of `kd`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        temperature: T, from 1e-6 to 1e30.
        beta: from 0 to 1; at 1/2 teacher and student may change places.
        alpha: the weight of the soft term, from 0 to 1.
        class_counts, smoothing, class_weights: of CE, as in `hard`.

    Returns:
        (B,), in nats, and its terms ``soft``, T^2 JSD / (beta (1 - beta)), and ``hard``, CE.

    Example:
        >>> z, v = torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])
        >>> options = {"temperature": 1.0, "alpha": 1.0}
        >>> [jsd(z, v, torch.tensor([0]), beta=b, **options)[0] for b in (0.0, 0.5)]
        [tensor([0.6931]), tensor([0.8630])]
    """
    share = beta if isinstance(beta, Tensor) else student_logits.new_tensor(beta)
    soft = softened(jensen_shannon, student_logits, teacher_logits, temperature, share)
    labelled = hard(
        student_logits, labels, class_counts, smoothing=smoothing, class_weights=class_weights
    )
    return mixed(alpha, soft, labelled), {"soft": soft, "hard": labelled}
