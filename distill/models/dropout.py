"""Dropout whose masks are made fast, from a generator of its own."""

from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

Probability = Annotated[float, Field(ge=0, lt=1)]


class Dropout(nn.Module):
    """Inverted dropout whose mask comes from ``generator`` and is the same for all members.

    Four 16-bit lanes are cut from each random 64-bit word: on a CPU, where random numbers are made
    one after another, that is over ten times faster than a Bernoulli draw an element. The
    probability is rounded to a multiple of 2^-16, and the scale is that of the rounded one.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = round(p * 2**16)
        self.generator: Generator | None = None

    def mask(self, shape: torch.Size, like: Tensor) -> Tensor:
        """A mask of ``shape`` in the type of ``like``: 0, or the inverse of the kept share."""
        size = prod(shape)
        words = torch.empty(-(-size // 4), dtype=torch.int64, device=like.device)
        # The default range of random_ leaves the sign bit, and so every fourth lane, at 0.
        words.random_(-(2**63), None, generator=self.generator)
        lanes = words.view(torch.int16)[:size].view(shape)
        # In place, since booleans are converted several times slower than integers.
        kept = lanes.ge_(self.dropped - 2**15).to(like.dtype)
        return kept.mul_(2**16 / (2**16 - self.dropped))

    @property
    def active(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.dropped > 0

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of ``x``."""
        return x * self.mask(x.shape, x) if self.active else x
