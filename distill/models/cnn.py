"""A small convolutional network."""

from itertools import pairwise
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.dropout import Dropout, Probability
from distill.models.mlp import Width
from distill.models.parts import Shape, image


class CNN(nn.Module):
    """Two 3 x 3 convolutions of ``width`` and twice ``width`` channels, each pooled, then linear.

    ``hidden`` adds a rectified linear layer before the output; ``dropout`` acts on what enters the
    fully connected part; ``batch_norm`` normalises what each convolution makes by the statistics of
    the batch (Ioffe and Szegedy 2015, arXiv 1502.03167). Images need at least 4 pixels a side.
    """

    def __init__(
        self,
        inputs: Shape,
        classes: int,
        *,
        width: Width,
        hidden: Annotated[int, Field(ge=0, le=2**20)] = 0,
        dropout: Probability = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        channels, height, breadth = image(inputs, 4)
        features = 2 * width * (height // 4) * (breadth // 4)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=not batch_norm)
            for a, b in pairwise([channels, width, 2 * width])
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(w) if batch_norm else nn.Identity() for w in (width, 2 * width)
        )
        sizes = [features, hidden, classes] if hidden > 0 else [features, classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # Rectified after pooling, of which the numbers are the same: a quarter of the work.
            x = F.relu(F.max_pool2d(norm(convolution(x)), 2))
        x = self.dropout(x.flatten(1))
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits
