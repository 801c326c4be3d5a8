"""Transfer sets: which training examples the student sees.

A subset takes the ``labels`` (N,) of the training examples and, if it needs one, a ``generator``,
and returns a mask (N,) of those to keep. Its other parameters are the keys of its yaml.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

__all__ = ["all", "fraction", "omit", "only"]

Classes = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def all(labels: Tensor) -> Tensor:  # noqa: A001
    """Every training example."""
    return torch.ones_like(labels, dtype=torch.bool)


def only(labels: Tensor, *, classes: Classes) -> Tensor:
    """The examples of ``classes`` alone (the paper, section 3: the digits 7 and 8)."""
    return torch.isin(labels, torch.tensor(classes, device=labels.device))


def omit(labels: Tensor, *, classes: Classes) -> Tensor:
    """Every example but those of ``classes`` (the paper, section 3: no digit 3)."""
    return ~only(labels, classes=classes)


def fraction(labels: Tensor, generator: Generator, *, fraction: Share) -> Tensor:
    """A random ``fraction`` of each class, at least one of each (the paper, section 5)."""
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    keep = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = order[labels[order] == label]
        keep[members[: max(1, round(fraction * len(members)))]] = True
    return keep
