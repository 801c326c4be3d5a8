"""Wide residual networks."""

from collections import OrderedDict
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.parts import Multiplier, Shape, draw, image, known_as, scaled, stage
from distill.models.resnet import Widening

Depth = Annotated[int, Field(ge=10, le=1000)]


class Block(nn.Module):
    """Normalised and rectified before each of two convolutions, beside a shortcut."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(entering)
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, padding=1, bias=False)
        self.projected = stride != 1 or entering != leaving
        if self.projected:  # its name is that in published weights
            self.convShortcut = nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut: Tensor = self.convShortcut(y) if self.projected else x
        z: Tensor = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return shortcut + z


@known_as(lambda depth, widen, **_: f"wrn_{depth}_{widen}")
class WRN(nn.Module):
    """The wide residual network of Zagoruyko and Komodakis 2016 (arXiv 1605.07146, table 1).

    Its parameters are named as in the literature on distillation (Tian et al. 2020, arXiv
    1910.10699).

    Args:
        inputs: (channels, height, width) of an image, of at least 3 x 3 pixels.
        classes: how many.
        depth: the number of layers, 6 n + 4 for n blocks a stage.
        widen: k, by what the stages are wider than 16, 32 and 64 channels.
        width: multiplies all numbers of channels, those of the first convolution, too.

    Raises:
        ValueError: the images are too small, or there is no network of that depth.
    """

    def __init__(
        self,
        inputs: Shape,
        classes: int,
        *,
        depth: Depth,
        widen: Widening = 1,
        width: Multiplier = 1.0,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest:
            raise ValueError(f"depth={depth}: wanted is 6 n + 4, such as 10, 16, 22, 28, 40")
        stem = scaled(16, width)
        sizes = [stem, *(scaled(16 * widen * wider, width) for wider in (1, 2, 4))]
        self.conv1 = nn.Conv2d(image(inputs, 3)[0], stem, 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = (
            nn.Sequential(
                OrderedDict(layer=stage(Block, blocks, sizes[n], sizes[n + 1], 1 + (n > 0)))
            )
            for n in range(3)
        )
        self.bn1 = nn.BatchNorm2d(sizes[3])
        self.fc = nn.Linear(sizes[3], classes)
        draw(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1)
        logits: Tensor = self.fc(x.flatten(1))
        return logits
