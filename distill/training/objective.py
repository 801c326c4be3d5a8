"""The losses of a stack's members: what each is given, and what they return.

Letters: K members, B examples in a batch, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from distill.config import Component
from distill.training.mapping import each, mappable

CPU = torch.device("cpu")
PROGRESS = (0.0, 0.5, 1.0)  # at which a loss is tried
EXAMPLES = 6  # of random numbers, on which a loss is tried


@dataclass(frozen=True)
class Objective:
    """A loss with the hyperparameters of each member.

    ``loss`` is that of one member (see `distill.losses`), which ``takes`` these of what can be
    given; ``numbers`` are those of its hyperparameters that are numbers, K values of each, and
    ``fixed`` the others, which the members share. Of several ``teachers`` each member has its own,
    by K numbers; of one none are needed. Where torch cannot map the loss over members, it is not
    ``mapped``, but called for one after another, with plain numbers.
    """

    loss: Callable[..., Any]
    takes: frozenset[str]
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    teachers: Sequence[int] = ()
    device: torch.device = CPU
    mapped: bool = True

    @classmethod
    def of(
        cls,
        losses: Sequence[Component],
        classes: int,
        device: torch.device = CPU,
        teachers: Sequence[int] = (),
    ) -> "Objective":
        """That of members whose ``losses`` differ in numbers alone, for data of C ``classes``."""
        first = losses[0]
        objective = cls(
            first.function,
            first.takes,
            {name: [loss.options[name] for loss in losses] for name in first.numbers},
            {name: value for name, value in first.options.items() if name not in first.numbers},
            teachers,
        )
        return replace(objective, device=device, mapped=objective.maps(classes))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The numbers as tensors (K,)."""
        return {name: torch.tensor(v, device=self.device) for name, v in self.numbers.items()}

    def __call__(
        self, logits: Tensor, given: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each member, (K, B) or (K,), and its named terms, of the same shape.

        Args:
            logits: (K, B, C), float32.
            given: ``labels`` (B,), ``class_counts`` (C,), ``progress`` from 0 to 1, and
                ``teacher_logits``: (B, C) for all members, or each one's own, (K, B, C).
        """
        taken = {name: value for name, value in given.items() if name in self.takes}
        apart = {n: taken.pop(n) for n in ("teacher_logits",) if n in taken and taken[n].ndim == 3}

        def member(own: Tensor, values: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            value = self.loss(student_logits=own, **taken, **values, **self.fixed)
            return value if isinstance(value, tuple) else (value, {})

        def plain(own: Tensor, k: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return member(own, {n: v[int(k)] for n, v in {**self.numbers, **apart}.items()})

        function, rest = (
            (member, {**self.tensors, **apart})
            if self.mapped
            else (plain, torch.arange(len(logits)))
        )
        found: tuple[Tensor, dict[str, Tensor]] = each(
            function, (logits, rest), len(logits), mapped=self.mapped
        )
        return found

    def keep(self, members: Tensor) -> "Objective":
        """That of the members at ``members`` (indices)."""
        chosen = members.tolist()
        return replace(
            self,
            numbers={n: [v[k] for k in chosen] for n, v in self.numbers.items()},
            teachers=[self.teachers[k] for k in chosen if self.teachers],
        )

    def maps(self, classes: int) -> bool:
        """Whether torch can map the loss over members, seen on a few random numbers."""
        logits, given = tried(1, classes)
        one = self.keep(torch.tensor([0]))
        if self.teachers:  # then the teacher's logits are mapped, too
            given["teacher_logits"] = given["teacher_logits"].unsqueeze(0)
        return mappable(lambda: [one(logits, {**given, "progress": p}) for p in PROGRESS])


def tried(members: int, classes: int) -> tuple[Tensor, dict[str, Any]]:
    """Random logits (K, B, C) and what a loss can be given with them, to try it on."""
    generator = Generator().manual_seed(0)
    z, v = (3 * torch.randn(EXAMPLES, classes, generator=generator) for _ in range(2))
    labels = torch.randint(classes, (EXAMPLES,), generator=generator)
    logits = z.expand(members, EXAMPLES, classes).clone().requires_grad_()
    given = {"labels": labels, "class_counts": labels.bincount(minlength=classes)}
    return logits * 1, {**given, "teacher_logits": v, "progress": 0.5}
