"""The losses of a stack's members: what each is given, and what they return.

Letters: K members, B examples in a batch, N in the transfer set, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from distill.config import Component
from distill.seeds import derive, seeded
from distill.training.features import Shape
from distill.training.mapping import each, mappable
from distill.training.stack import Stack, applied

CPU = torch.device("cpu")
PROGRESS = (0.0, 0.5, 1.0)  # at which a loss is tried
EXAMPLES = 6  # of random numbers, on which a loss is tried
TAUGHT = ("teacher_logits", "teacher_features")  # of which each member may have its own


class Seen(NamedTuple):
    """The shapes of the features that a loss asks for, without the axis of examples."""

    student: tuple[Shape, ...] = ()
    teacher: tuple[Shape, ...] = ()


UNSEEN = Seen()


@dataclass(frozen=True)
class Objective:
    """A loss with the hyperparameters of each member.

    ``loss`` is that of one member (see `distill.losses`), which ``takes`` these of what can be
    given; ``numbers`` are those of its hyperparameters that are numbers, K values of each, and
    ``fixed`` the others, which the members share. Of several ``teachers`` each member has its own,
    by K numbers; of one none are needed. Where torch cannot map the loss over members, it is not
    ``mapped``, but called for one after another, with plain numbers. ``features`` are the names of
    the modules of the student whose outputs it asks for. Its own parameters are those of a stack of
    K modules, ``learned``, which is in float32 whatever the students are.
    """

    loss: Callable[..., Any]
    takes: frozenset[str]
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    teachers: Sequence[int] = ()
    device: torch.device = CPU
    mapped: bool = True
    features: Sequence[str] | None = None
    learned: Stack | None = None

    @classmethod
    def of(
        cls,
        losses: Sequence[Component],
        classes: int,
        device: torch.device = CPU,
        teachers: Sequence[int] = (),
        *,
        seen: Seen = UNSEEN,
        features: Sequence[str] | None = None,
        labels: Tensor | None = None,
        seed: int = 0,
    ) -> "Objective":
        """That of members whose ``losses`` differ in numbers alone, for data of C ``classes``.

        Parameters of its own are initialised by the ``seed``, the same for all members, for a
        transfer set of these ``labels`` (N,).
        """
        first = losses[0]
        labels = torch.arange(EXAMPLES) % classes if labels is None else labels
        some, own = few(labels), partial(_learned, first, classes, seen)
        one = cls(
            first.function,
            first.takes,
            {name: [loss.options[name] for loss in losses] for name in first.numbers},
            {name: value for name, value in first.options.items() if name not in first.numbers},
            teachers,
            features=features,
            learned=own(some, 0, 1, CPU),
        )
        mapped = one.maps(classes, seen, len(some))
        learned = own(labels, seed, len(losses), device)
        return replace(one, device=device, mapped=mapped, learned=learned)

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
            given: ``labels`` (B,), ``class_counts`` (C,), ``index`` (B,), ``progress`` from 0 to 1,
                ``student_features``, each (K, B, ...), and ``teacher_logits`` and
                ``teacher_features``: (B, ...) for all members, or each one's own, (K, B, ...).
        """
        taken = {name: value for name, value in given.items() if name in self.takes}
        apart: dict[str, Any] = {"student_logits": logits}
        if "student_features" in taken:
            apart["student_features"] = taken.pop("student_features")
        if "teacher_logits" in given and given["teacher_logits"].ndim == 3:
            apart |= {name: taken.pop(name) for name in TAUGHT if name in taken}

        def member(
            own: Mapping[str, Any],
            values: Mapping[str, Any],
            parameters: dict[str, Tensor],
            buffers: dict[str, Tensor],
        ) -> tuple[Tensor, dict[str, Tensor]]:
            parts = dict(self.fixed)
            if self.learned is not None:
                parts["learned"] = partial(applied, self.learned.module, parameters, buffers)
            value = self.loss(**own, **taken, **values, **parts)
            return value if isinstance(value, tuple) else (value, {})

        def plain(own: Any, k: Tensor, *tensors: Any) -> tuple[Tensor, dict[str, Tensor]]:
            return member(own, {n: v[int(k)] for n, v in self.numbers.items()}, *tensors)

        function, numbers = (
            (member, self.tensors) if self.mapped else (plain, torch.arange(len(logits)))
        )
        own: tuple[Any, Any] = ({}, {})
        noise: Sequence[Generator] = ()
        if self.learned is not None:
            own = (self.learned.leaves, self.learned.buffers)
            noise = self.learned.noise
        found: tuple[Tensor, dict[str, Tensor]] = each(
            function, (apart, numbers, *own), len(logits), mapped=self.mapped, noise=noise
        )
        return found

    def keep(self, members: Tensor) -> "Objective":
        """That of the members at ``members`` (indices)."""
        chosen = members.tolist()
        return replace(
            self,
            numbers={n: [v[k] for k in chosen] for n, v in self.numbers.items()},
            teachers=[self.teachers[k] for k in chosen if self.teachers],
            learned=None if self.learned is None else self.learned.only(members),
        )

    def maps(self, classes: int, seen: Seen, examples: int) -> bool:
        """Whether torch can map the loss over members, seen on a few random numbers."""
        logits, given = tried(1, classes, seen, examples)
        one = self.keep(torch.tensor([0]))
        if self.teachers:  # then what a teacher says is mapped, too
            given["teacher_logits"] = given["teacher_logits"].unsqueeze(0)
            given["teacher_features"] = [f.unsqueeze(0) for f in given["teacher_features"]]
        with seeded(0, CPU):
            return mappable(lambda: [one(logits, {**given, "progress": p}) for p in PROGRESS])


def _learned(
    loss: Component,
    classes: int,
    seen: Seen,
    labels: Tensor,
    seed: int,
    members: int,
    device: torch.device,
) -> Stack | None:
    """The parameters of a ``loss`` of its own, for each of K members, ready to be trained."""
    if loss.learned is None:
        return None
    given = {
        "student_features": list(seen.student),
        "teacher_features": list(seen.teacher),
        "classes": classes,
        "examples": len(labels),
        "labels": labels.cpu(),
        **loss.options,
    }
    build = partial(loss.learned, **{name: given[name] for name in loss.asked})
    stack = Stack(build, members, derive(seed, "loss"), device)
    stack.trainable(torch.float32)
    return stack


def few(labels: Tensor) -> Tensor:
    """Labels of a few examples of each class, for which a loss is tried: a memory may be large."""
    counts = labels.bincount().clamp(max=EXAMPLES).cpu()
    return torch.arange(len(counts)).repeat_interleave(counts)


def tried(
    members: int, classes: int, seen: Seen = UNSEEN, examples: int = EXAMPLES
) -> tuple[Tensor, dict[str, Any]]:
    """Random logits (K, B, C) and what a loss can be given with them, to try it on.

    Features are as they were ``seen``, and the examples are some of N.
    """
    generator = Generator().manual_seed(0)
    z, v = (3 * torch.randn(EXAMPLES, classes, generator=generator) for _ in range(2))
    labels = torch.randint(classes, (EXAMPLES,), generator=generator)
    logits = z.expand(members, EXAMPLES, classes).clone().requires_grad_()
    own, heard = (
        [torch.randn(EXAMPLES, *shape, generator=generator) for shape in shapes] for shapes in seen
    )
    return logits * 1, {
        "labels": labels,
        "class_counts": labels.bincount(minlength=classes),
        "index": torch.arange(EXAMPLES) % examples,
        "teacher_logits": v,
        "progress": 0.5,
        "student_features": [f.expand(members, *f.shape).clone().requires_grad_() for f in own],
        "teacher_features": heard,
    }
