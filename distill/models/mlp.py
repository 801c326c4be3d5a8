"""The multilayer perceptron."""

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from distill.models.dropout import Dropout, Probability
from distill.models.parts import Shape

Depth = Annotated[int, Field(gt=0, le=1000)]
Width = Annotated[int, Field(gt=0, le=2**20)]


class MLP(nn.Module):
    """The paper's network: ``depth`` hidden layers of ``width`` rectified linear units.

    ``inputs`` may have any shape. ``dropout`` acts on hidden units, ``input_dropout`` on inputs;
    ``max_norm`` bounds the Euclidean norm of each hidden unit's incoming weights (Hinton et al.
    2012, arXiv 1207.0580).
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
