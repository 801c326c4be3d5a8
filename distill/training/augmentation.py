"""An augmentation of a config, as the training loop calls it.

Letters: B examples in a batch, C classes.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from distill.config import Component
from distill.data.dataset import Dataset
from distill.seeds import generator, seeded

CPU = torch.device("cpu")


@dataclass
class Augmentation:
    """What changes a batch of inputs, and perhaps their labels; random by ``source`` alone."""

    component: Component
    classes: int
    source: Generator = field(default_factory=lambda: generator(0, "augment"))

    def begin(self, seed: int, epoch: int, device: torch.device) -> None:
        """An epoch begins, whose randomness follows from the seed and its number."""
        self.source = generator(seed, "augment", epoch, on=device)

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and the labels, (B,) or shares (B, C), that take their place."""
        found: Any = self.component(
            inputs=inputs, labels=labels, classes=self.classes, generator=self.source
        )
        return found if isinstance(found, tuple) else (found, labels)


def augmentation(component: Component | None, classes: int) -> Augmentation | None:
    """The augmentation that a section names, if it names one."""
    return None if component is None else Augmentation(component, classes)


def mixes(component: Component, data: Dataset) -> bool:
    """Whether an augmentation mixes labels, once it was seen that the training loop can use it.

    Raises:
        ValueError: it cannot; the text says why.
    """
    labels = data.train_labels[:4]
    inputs = data.train_inputs[:4]
    inputs = inputs.float() if data.features else inputs
    found = []
    for _ in range(2):
        with seeded(0, CPU):
            try:
                found.append(Augmentation(component, data.classes)(inputs.clone(), labels.clone()))
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise ValueError(f"it fails on inputs {tuple(inputs.shape)}: {reason}") from error
    (x, y), again = found
    kinds = (torch.float32,) if data.features else (torch.uint8, torch.float32)
    if not isinstance(x, Tensor) or x.shape != inputs.shape or x.dtype not in kinds:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        wanted = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
        raise ValueError(f"it returns {got}; wanted is {wanted} {tuple(inputs.shape)}")
    mixed = (torch.float32, (len(labels), data.classes))
    if not isinstance(y, Tensor) or (y.dtype, tuple(y.shape)) not in (
        (torch.int64, tuple(labels.shape)),
        mixed,
    ):
        raise ValueError(
            f"its labels are not int64 {tuple(labels.shape)}, nor float32 {mixed[1]}, as shares"
        )
    if not (torch.equal(x, again[0]) and torch.equal(y, again[1])):
        raise ValueError("its randomness comes neither from its generator nor from torch's")
    return y.is_floating_point()
