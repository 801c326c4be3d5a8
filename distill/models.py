"""Models of one member: plain modules from images (B, channels, H, W) to logits (B, C).

A model takes the shape of an image and the number of classes; its keyword-only parameters are its
hyperparameters and the keys of its yaml. Its randomness in training comes from `Dropout` below,
which draws from a generator that the trainer sets. It may have a method ``constrain_(parameters)``
that projects its parameters in place after each step, and returns whether it did; they may carry
leading member axes.
"""

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor, nn

__all__ = ["CNN", "MLP"]

Depth = Annotated[int, Field(gt=0, le=1000)]
Width = Annotated[int, Field(gt=0, le=2**20)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Shape = tuple[int, int, int]


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


class MLP(nn.Module):
    """The paper's network: ``depth`` hidden layers of ``width`` rectified linear units.

    ``dropout`` acts on hidden units, ``input_dropout`` on pixels; ``max_norm`` bounds the Euclidean
    norm of each hidden unit's incoming weights (Hinton et al. 2012, arXiv 1207.0580).
    """

    def __init__(
        self,
        inputs: Shape,
        classes: int,
        *,
        width: Width,
        depth: Depth = 2,
        dropout: Probability = 0.0,
        input_dropout: Probability = 0.0,
        max_norm: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        sizes = [prod(inputs), *[width] * depth, classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropouts = nn.ModuleList(Dropout(p) for p in [input_dropout, *[dropout] * depth])
        self.max_norm = max_norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropouts[0](x.flatten(1))
        for layer, dropout in zip(self.layers[:-1], self.dropouts[1:], strict=True):
            x = dropout(F.relu(layer(x)).T).T  # examples last, as a stack has them
        logits: Tensor = self.layers[-1](x)
        return logits

    def constrain_(self, parameters: Mapping[str, Tensor]) -> bool:
        """Scale the incoming weights of hidden units back to ``max_norm`` where they exceed it."""
        if self.max_norm is None:
            return False
        for i in range(len(self.layers) - 1):
            weight = parameters[f"layers.{i}.weight"]
            norm = torch.linalg.vector_norm(weight, dim=-1, keepdim=True)
            weight.mul_((self.max_norm / norm).clamp_(max=1))
        return True


class CNN(nn.Module):
    """Two 3 x 3 convolutions of ``width`` and twice ``width`` channels, each pooled, then linear.

    ``hidden`` adds a rectified linear layer before the output; ``dropout`` acts on what enters the
    fully connected part. Images need at least 4 pixels a side.
    """

    def __init__(
        self,
        inputs: Shape,
        classes: int,
        *,
        width: Width,
        hidden: Annotated[int, Field(ge=0, le=2**20)] = 0,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        channels, height, breadth = inputs
        features = 2 * width * (height // 4) * (breadth // 4)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise([channels, width, 2 * width])
        )
        sizes = [features, *[hidden] * (hidden > 0), classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        x = self.dropout(x.flatten(1))
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits
