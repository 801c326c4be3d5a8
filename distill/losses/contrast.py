"""Contrast of the features of one example with those of others, which a memory holds.

Letters: B examples in a batch, N in the transfer set, M negatives, E numbers of an embedding, C
classes.
"""

from collections.abc import Sequence
from math import log, prod
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from distill.losses.labels import hard

Shape = tuple[int, ...]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Memory(nn.Module):
    """Learned embeddings of a student's and a teacher's features, and what they were before.

    Two linear maps to E numbers of norm 1, and for each of both and each of the N examples of the
    transfer set an average of what it was, at first uniform from -(3 / E)^.5 to that.

    Raises:
        ValueError: there is more than one feature, or but one class in the transfer set.
    """

    of_student: Tensor
    of_teacher: Tensor
    scale: Tensor
    order: Tensor
    label: Tensor
    count: Tensor
    first: Tensor

    def __init__(
        self,
        student_features: Sequence[Shape],
        teacher_features: Sequence[Shape],
        labels: Tensor,
        size: int,
        negatives: int,
    ) -> None:
        super().__init__()
        if len(student_features) != 1 or len(teacher_features) != 1:
            pair = f"{len(student_features)} of the student and {len(teacher_features)}"
            raise ValueError(f"features are {pair} of the teacher; wanted is one of each")
        counts = labels.bincount()
        if int((counts > 0).sum()) < 2:
            raise ValueError("the transfer set has but one class, and so no negatives")
        self.student = nn.Linear(prod(student_features[0]), size)
        self.teacher = nn.Linear(prod(teacher_features[0]), size)
        self.many = negatives
        bound = (3 / size) ** 0.5
        for name in ("of_student", "of_teacher"):
            self.register_buffer(name, (2 * torch.rand(len(labels), size) - 1) * bound)
        # Of the scores of each, which are probabilities once they are divided by it; 0 is unknown.
        self.register_buffer("scale", torch.zeros(2))
        # The examples class by class: so those of other classes are all but a part of these.
        self.register_buffer("order", labels.argsort(stable=True))
        self.register_buffer("label", labels.clone())
        self.register_buffer("count", counts)
        self.register_buffer("first", counts.cumsum(0) - counts)

    def negatives(self, index: Tensor) -> Tensor:
        """Numbers (B, M) of examples of other classes, uniform and independent."""
        own = self.label[index].unsqueeze(1)
        count, first = self.count[own], self.first[own]
        others = len(self.label) - count
        share = torch.rand(len(index), self.many, device=index.device)
        place = (share * others).long().clamp(max=others - 1)
        return self.order[torch.where(place < first, place, place + count)]

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        index: Tensor,
        temperature: Tensor | float,
        momentum: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, 1 + M) that the first pair, and not the others, is of one example.

        Of the student's embeddings with what the teacher's were, and the other way round. Then
        what was is averaged with what is.
        """
        own = F.normalize(self.student(student.flatten(1)))
        theirs = F.normalize(self.teacher(teacher.flatten(1)))
        chosen = torch.cat([index.unsqueeze(1), self.negatives(index)], 1)
        found, scales = [], []
        for n, (anchor, other) in enumerate(((own, self.of_teacher), (theirs, self.of_student))):
            # All N products, since the M rows of each example would take far more memory; of a
            # copy, which stays as it is until the gradient is taken.
            scores = (anchor @ other.clone().mT / temperature).gather(1, chosen)
            fresh = scores.detach().exp().mean().log()
            scale = torch.where(self.scale[n] != 0, self.scale[n], fresh)
            scales.append(scale)
            found.append(scores - scale - log(self.many))
        with torch.no_grad():
            self.scale = torch.stack(scales)
            for now, before in ((own, self.of_student), (theirs, self.of_teacher)):
                mixed = momentum * before[index] + (1 - momentum) * now
                before[index] = F.normalize(mixed)
        return found[0], found[1]


def crd(
    student_logits: Tensor,
    labels: Tensor,
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    index: Tensor,
    learned: Memory,
    *,
    beta: NonNegativeFloat = 0.8,
    temperature: PositiveFloat = 0.07,
    momentum: Momentum = 0.5,
    negatives: PositiveInt = 16384,  # noqa: ARG001  (with which the memory is made)
    size: PositiveInt = 128,  # noqa: ARG001
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrastive representation distillation: ``CE + beta (L_s + L_t)``.

    Of the embeddings of an example by the student, and by the teacher, one is to be told from M
    negatives by the other: ``L = -log h_0 - sum_m log(1 - h_m)`` with ``h = e^(g / T) / (e^(g / T)
    + M Z / N)`` of the inner product g and a constant Z, so that e^(g / T) / Z is a probability
    over the N examples; it is estimated in the first batch. Negatives are of other classes, drawn
    with replacement, from a memory of the embeddings' averages. Tian et al. (2020), "Contrastive
    Representation Distillation", arXiv 1910.10699; the numbers are those of their code.

    Args:
        student_logits: (B, C).
        labels: (B,), whole numbers from 0 to C - 1.
        student_features: one, (B, ...): the penultimate ones in the paper.
        teacher_features: one, (B, ...).
        index: (B,), the numbers of the examples in the transfer set.
        learned: the embeddings and the memory.
        beta: the weight of the contrast.
        temperature: T.
        momentum: the weight of what was, in the memory.
        negatives: M.
        size: E.

    Returns:
        (B,), and its terms ``soft``, L_s + L_t, and ``hard``, CE in nats.

    Example:
        >>> memory = Memory([(3,)], [(5,)], torch.tensor([0, 1, 0, 1]), 2, 4)
        >>> s, t, labels = [torch.rand(2, 3)], [torch.rand(2, 5)], torch.tensor([0, 1])
        >>> loss, _ = crd(torch.zeros(2, 2), labels, s, t, torch.tensor([0, 1]), memory)
        >>> loss.shape
        torch.Size([2])
    """
    found = learned(student_features[0], teacher_features[0], index, temperature, momentum)
    soft = sum(-F.logsigmoid(u[:, 0]) - F.logsigmoid(-u[:, 1:]).sum(1) for u in found)
    assert isinstance(soft, Tensor)
    labelled = hard(student_logits, labels)
    return labelled + beta * soft, {"soft": soft, "hard": labelled}
