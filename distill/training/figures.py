"""What is measured of trained members besides errors and loss, from logits that come in batches.

Letters: K members, N examples, B of them in a batch, C classes. Sums are of float64.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.training.evaluate import errors_by_class

BINS = 15  # of equal width, for the calibration error
TOP = 5  # classes, among which the right one is no error of the top


def figures(
    batches: Iterable[tuple[Tensor, Tensor]], labels: Tensor, teacher: Tensor | None = None
) -> dict[str, Tensor]:
    """Figures of K members on N examples.

    - ``errors_by_class`` (K, C), and ``counts_by_class`` (K, C), the examples of each class;
    - ``balanced_accuracy`` (K,): the mean of the accuracies in each class that there is;
    - ``top5_errors`` (K,): examples whose label is none of the five largest logits, where C > 5;
    - ``ece`` (K,): the expected calibration error, sum_m n_m / N |accuracy_m - confidence_m| over
      15 bins of equal width of the largest probability (Guo et al. 2017, arXiv 1706.04599, eq. 3);
    - ``agreement`` (K,): the share of examples that are given the teacher's class;
    - ``teacher_kl`` (K,): the mean of KL(teacher || student) at temperature 1, in nats, as
      fidelity is measured by Stanton et al. (2021, arXiv 2106.05945).

    Args:
        batches: indices (B,) and logits (K, B, C), each example once.
        labels: (N,).
        teacher: its logits (N, C), or None for none of the last two.

    Example:
        >>> z = torch.tensor([[[0.0, 9.0], [9.0, 0.0]]])
        >>> found = figures([(torch.arange(2), z)], torch.tensor([1, 1]))
        >>> found["balanced_accuracy"], found["ece"]
        (tensor([0.5000], dtype=torch.float64), tensor([0.4999], dtype=torch.float64))
    """
    sums: dict[str, Tensor] = {}
    for index, z in batches:
        own = _sums(z, labels[index], None if teacher is None else teacher[index])
        sums = {name: sums.get(name, 0) + value for name, value in own.items()}
    errors, gaps = sums["errors_by_class"], sums.pop("gaps")
    counts = labels.bincount(minlength=errors.shape[1])
    found = counts > 0
    for name in sums.keys() & {"agreement", "teacher_kl"}:
        sums[name] = sums[name].double() / len(labels)
    return {
        **sums,
        "counts_by_class": counts.expand_as(errors),
        "balanced_accuracy": 1 - (errors[:, found].double() / counts[found]).mean(1),
        "ece": gaps.abs().sum(1) / len(labels),
    }


@torch.no_grad()
def _sums(z: Tensor, labels: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
    """What is summed over the batches, (K, ...), of logits (K, B, C)."""
    logs = z.double().log_softmax(-1)
    chosen, confidence = z.argmax(-1), logs.amax(-1).exp()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # each with its upper end
    gap = (chosen == labels).double() - confidence
    gaps = torch.bmm(gap.unsqueeze(1), F.one_hot(bins, BINS).double()).squeeze(1)
    sums = {"errors_by_class": errors_by_class(z, labels), "gaps": gaps}
    if z.shape[-1] > TOP:
        top = z.topk(TOP).indices
        sums["top5_errors"] = (top != labels.unsqueeze(-1)).all(-1).sum(1)
    if teacher is not None:
        log_p = teacher.double().log_softmax(-1)
        kl = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - logs), 0)
        sums["agreement"] = (chosen == teacher.argmax(-1)).sum(1)
        sums["teacher_kl"] = kl.sum((1, 2))
    return sums
