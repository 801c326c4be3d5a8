"""Features of a student that are pulled towards those of its teacher, example by example.

Letters: B examples, D and H and W a feature's channels and size, C classes; s and t of student and
teacher.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from distill.losses.labels import hard

Shape = tuple[int, ...]


class Projections(nn.Module):
    """A linear map from the channels of each of a student's features to those of the teacher's.

    For maps (B, D, H, W) these are 1 x 1 convolutions. Of other features (B, ..., D) the channels
    are the last axis.
    """

    def __init__(
        self, student_features: Sequence[Shape], teacher_features: Sequence[Shape]
    ) -> None:
        super().__init__()
        pairs = zip(student_features, teacher_features, strict=True)
        self.layers = nn.ModuleList(
            nn.Linear(_channels(student), _channels(teacher)) for student, teacher in pairs
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The features (B, ...), each with as many channels as the teacher's."""
        return [
            layer(f.movedim(1, -1)).movedim(-1, 1) if f.ndim == 4 else layer(f)
            for layer, f in zip(self.layers, features, strict=True)
        ]


def fitnets(
    student_logits: Tensor,
    labels: Tensor,
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    learned: Projections,
    *,
    beta: NonNegativeFloat = 100.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hints: ``CE + beta sum_l mean (r_l(s_l) - t_l)^2``.

    Romero et al. (2015), "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, where hints come
    first and labels after them; here both are learned at once, as in the comparison of Tian et al.
    (2020, arXiv 1910.10699), whose beta this is. The regressor r is a 1 x 1 convolution, or of
    vectors a linear layer. Of maps of different size the larger is averaged to the smaller.

    Args:
        student_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        student_features: maps (B, D, H, W) or vectors (B, D), one for each of the teacher's.
        teacher_features: of the same kind.
        learned: makes the student's channels the teacher's.
        beta: the weight of the hints.

    Returns:
        (B,), and its terms ``soft``, of the hints, and ``hard``, CE in nats.

    Raises:
        ValueError: two features cannot be compared.

    Example:
        >>> s, t, learned = [torch.zeros(1, 3)], [torch.zeros(1, 5)], Projections([(3,)], [(5,)])
        >>> loss, _ = fitnets(torch.zeros(1, 2), torch.tensor([0]), s, t, learned)
        >>> loss.shape
        torch.Size([1])
    """
    pairs = zip(learned(student_features), teacher_features, strict=True)
    soft = sum(_error(*_fitted(own, teacher)) for own, teacher in pairs)
    assert isinstance(soft, Tensor)
    labelled = hard(student_logits, labels)
    return labelled + beta * soft, {"soft": soft, "hard": labelled}


def at(
    student_logits: Tensor,
    labels: Tensor,
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    beta: NonNegativeFloat = 1000.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention transfer: ``CE + beta sum_l mean (Q(s_l) / |Q(s_l)| - Q(t_l) / |Q(t_l)|)^2``.

    Q of a map is its mean square over channels, (H W,) numbers, over which the mean is taken.
    Zagoruyko and Komodakis (2017), "Paying More Attention to Attention", arXiv 1612.03928;
    the square, the mean and beta are of the comparison of Tian et al. (2020, arXiv 1910.10699). Of
    maps of different size the larger is averaged to the smaller.

    Args:
        student_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        student_features: maps (B, D, H, W), one for each of the teacher's.
        teacher_features: the same of the teacher, of any number of channels.
        beta: the weight of the maps.

    Returns:
        (B,), and its terms ``soft``, of the maps, and ``hard``, CE in nats.

    Raises:
        ValueError: features are no maps.

    Example:
        >>> maps = torch.rand(1, 3, 4, 4)
        >>> _, terms = at(torch.zeros(1, 2), torch.tensor([0]), [maps], [2 * maps])
        >>> terms["soft"]
        tensor([0.])
    """
    soft = student_logits.new_zeros(len(student_logits))
    for own, teacher in zip(student_features, teacher_features, strict=True):
        if own.ndim != 4 or teacher.ndim != 4:
            shapes = f"{tuple(own.shape[1:])} of the student and {tuple(teacher.shape[1:])}"
            raise ValueError(
                f"features are {shapes} of the teacher; wanted are maps (channels, height, width): "
                "name convolutional modules by model.features and teacher.model.features"
            )
        soft = soft + _error(*(_attention(maps) for maps in _fitted(own, teacher)))
    labelled = hard(student_logits, labels)
    return labelled + beta * soft, {"soft": soft, "hard": labelled}


def _channels(shape: Shape) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]


def _error(one: Tensor, other: Tensor) -> Tensor:
    """The mean squared difference of each example, (B,)."""
    if one.shape != other.shape:
        shapes = f"{tuple(one.shape[1:])} and {tuple(other.shape[1:])}"
        raise ValueError(f"features of {shapes} cannot be compared; name others")
    return (one - other).square().flatten(1).mean(1)


def _attention(maps: Tensor) -> Tensor:
    """Q / |Q| of maps (B, D, H, W), in (B, H W)."""
    return F.normalize(maps.square().mean(1).flatten(1))


def _fitted(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps in the smaller of their sizes, to which the larger is averaged; others unchanged."""
    if one.ndim != 4 or other.ndim != 4 or one.shape[2:] == other.shape[2:]:
        return one, other
    height, width = map(min, one.shape[2:], other.shape[2:])
    one, other = (F.adaptive_avg_pool2d(maps, (height, width)) for maps in (one, other))
    return one, other
