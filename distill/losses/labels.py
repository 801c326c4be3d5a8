"""The loss of labels alone."""

import torch.nn.functional as F
from torch import Tensor


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the classes of (B, C); with classes first in memory, where all examples go at once."""
    return F.log_softmax(logits.mT, -2).mT


def hard(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels at temperature 1.

    Args:
        student_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1; or shares of the classes, (B, C).

    Returns:
        (B,), in nats.

    Example:
        >>> hard(torch.zeros(1, 10), torch.tensor([3]))
        tensor([2.3026])
    """
    if labels.is_floating_point():
        return -(labels * _log_softmax(student_logits)).sum(-1)
    # Mapped over members, this is several times faster than F.cross_entropy.
    return -_log_softmax(student_logits).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
