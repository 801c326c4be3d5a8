"""The loss of labels alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.mixing import ClassWeights, Smoothing


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the classes of (B, C); with classes first in memory, where all examples go at once."""
    return F.log_softmax(logits.mT, -2).mT


def hard(
    student_logits: Tensor,
    labels: Tensor,
    class_counts: Tensor | None = None,
    *,
    smoothing: Smoothing = None,
    class_weights: ClassWeights = None,
) -> Tensor:
    """Cross-entropy with the labels at temperature 1.

    With a smoothing s, the target is 1 - s for the label, and s / C for each class besides
    (Szegedy et al. 2016, arXiv 1512.00567, section 7). With weights w, each class's part of the
    sum is multiplied by its own, and the mean over the batch divided by that of its labels'
    weights: so it is that of ``torch.nn.functional.cross_entropy``, whose ``weight`` and
    ``label_smoothing`` these are.

    Args:
        student_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1; or shares of the classes, (B, C).
        class_counts: (C,), the examples of each class in the transfer set; for balanced weights.
        smoothing: s, from 0 to less than 1; None: none.
        class_weights: a number for each class; or "balanced", for n / (m n_c) of n_c among n
            examples, m classes of which there are any; None: none.

    Returns:
        (B,), in nats.

    Raises:
        ValueError: there are not C weights, or no counts to balance by.

    Example:
        >>> hard(torch.zeros(1, 10), torch.tensor([3]))
        tensor([2.3026])
        >>> z, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
        >>> hard(z, labels, smoothing=0.1, class_weights=[1.0, 3.0])
        tensor([0.2198, 1.0051])
    """
    logs = _log_softmax(student_logits)
    if labels.is_floating_point():
        values = -(labels * logs).sum(-1)
    else:  # Mapped over members, this is several times faster than F.cross_entropy.
        values = -logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    if smoothing is None and class_weights is None:
        return values
    weights = _weights(class_weights, class_counts, logs)
    if labels.is_floating_point():
        own = labels @ weights
        values = -(labels * weights * logs).sum(-1)
    else:
        own = weights[labels]
        values = own * values
    if smoothing is not None:
        values = (1 - smoothing) * values - smoothing * (weights * logs).mean(-1)
    return values / own.mean()


def _weights(given: ClassWeights, counts: Tensor | None, logs: Tensor) -> Tensor:
    """The weight of each class (C,), in the type of ``logs`` (B, C)."""
    classes = logs.shape[-1]
    if given is None:
        return torch.ones(classes, dtype=logs.dtype, device=logs.device)
    if isinstance(given, str):
        if counts is None:
            raise ValueError(f"class_weights={given}: it needs class_counts")
        found, examples = counts > 0, counts.to(logs.dtype)
        return torch.where(found, examples.sum() / (found.sum() * examples), 0)
    if len(given) != classes:
        raise ValueError(
            f"class_weights={list(given)}: these are {len(given)} numbers, and there are "
            f"{classes} classes; give one a class, or balanced"
        )
    return torch.tensor(given, dtype=logs.dtype, device=logs.device)
