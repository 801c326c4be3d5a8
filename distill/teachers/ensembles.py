"""What several teachers say together.

Letters: K teachers, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def average(logits: Tensor, weights: Sequence[float] | None = None, of: str = "logits") -> Tensor:
    """The logits (..., C) of an ensemble, from those of its K members (K, ..., C).

    The mean of logits is, at every temperature, the geometric mean of the members' softened
    probabilities, normalised; of "probabilities" it is their arithmetic mean at temperature 1,
    whose logarithm is softened at another (the paper, section 1, names both).

    Args:
        logits: float32.
        weights: K positive numbers, of which only the ratios count; None: all alike.
        of: "logits" or "probabilities".

    Example:
        >>> two = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
        >>> average(two, [3, 1], "probabilities").exp()
        tensor([0.7000, 0.3000])
    """
    if weights is None and of == "logits":
        return logits.mean(0)
    given = torch.tensor(weights or [1.0] * len(logits), dtype=torch.float64)
    shares = (given / given.sum()).to(logits).view(-1, *[1] * (logits.ndim - 1))
    if of == "logits":
        return (shares * logits).sum(0)
    return (logits.log_softmax(-1) + shares.log()).logsumexp(0)
