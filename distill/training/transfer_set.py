"""What a stack learns from: the transfer set, and what teachers say of its batches.

Letters: K members, B examples in a batch, N examples in the data set, M of them in the transfer
set, V views of each, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.data.views import Inputs
from distill.seeds import generator
from distill.training.augmentation import Augmentation

# What a teacher says: its logits, or these and its features.
Said = Tensor | tuple[Tensor, ...]
# A teacher as students hear it: what it says of all views, (N, V, ...), or what makes that of a
# batch, (B, ...).
Source = Said | Callable[[Tensor], Said]


@dataclass(frozen=True)
class TransferSet:
    """What a student learns from: images, labels (N,), and the indices (M,) of those it sees.

    The indices rise. ``teachers`` are one, of whom all learn, or several; none for hard labels
    alone.
    """

    images: Inputs
    labels: Tensor
    index: Tensor
    teachers: Sequence[Source] = ()
    augmentation: Augmentation | None = None

    @cached_property
    def class_counts(self) -> Tensor:
        """How many examples of each class (C,) it sees."""
        return self.labels[self.index].bincount(minlength=int(self.labels.max()) + 1)

    def taught(self, own: Sequence[int], index: Tensor, view: Tensor, x: Tensor) -> dict[str, Any]:
        """What the members' ``own`` teachers, by their numbers, say of a batch, under its names.

        Each is asked once: of several the logits are (K, B, C), those of a single one (B, C); and
        features, of those that are asked for them, are so, too.
        """
        said = {n: self._said(self.teachers[n], index, view, x) for n in dict.fromkeys(own or [0])}
        if len(said) > 1:
            logits, *features = map(torch.stack, zip(*(said[n] for n in own), strict=True))
        else:
            [[logits, *features]] = said.values()
        return {"teacher_logits": logits, "teacher_features": features}

    def _said(self, teacher: Source, index: Tensor, view: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """What one teacher says of a batch: its logits, and perhaps features."""
        if isinstance(teacher, Tensor):
            teacher = (teacher,)
        if isinstance(teacher, tuple):
            return tuple(part[index, view].float() for part in teacher)
        said = teacher(x)
        return said if isinstance(said, tuple) else (said,)

    def batches(self, seed: int, epoch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and views (B,) of each batch: every example once, in a new order and view."""
        order = torch.randperm(len(self.index), generator=generator(seed, "order", epoch))
        jitter = generator(seed, "jitter", epoch)
        views = torch.randint(self.images.views, order.shape, generator=jitter)
        device = self.index.device
        index = torch.split(self.index[order.to(device)], size)
        return zip(index, torch.split(views.to(device), size), strict=True)
