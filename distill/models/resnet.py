"""Residual networks for small images."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.parts import Multiplier, Shape, draw, image, known_as, scaled, stage

Depth = Annotated[int, Field(ge=8, le=1202)]
Widening = Annotated[int, Field(ge=1, le=64)]


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or entering != leaving:
            projection = nn.Conv2d(entering, leaving, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(leaving))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


@known_as(lambda depth, widen, **_: f"resnet{depth}" + (f"x{widen}" if widen > 1 else ""))
class ResNet(nn.Module):
    """The residual network for 32 x 32 images of He et al. 2016 (arXiv 1512.03385, section 4.2).

    Three stages of 16, 32 and 64 channels times ``widen``; the first convolution has 16, or 32
    where they are widened, as in the literature on distillation (resnet8x4 and resnet32x4 of Tian
    et al. 2020, arXiv 1910.10699), whose projected shortcuts and names of parameters these have.

    Args:
        inputs: (channels, height, width) of an image, of at least 3 x 3 pixels.
        classes: how many.
        depth: the number of layers, 6 n + 2 for n blocks a stage.
        widen: by what each stage is wider than in the paper.
        width: multiplies all numbers of channels.

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
        blocks, rest = divmod(depth - 2, 6)
        if rest:
            raise ValueError(f"depth={depth}: wanted is 6 n + 2, such as 8, 14, 20, 32, 56, 110")
        sizes = [scaled(16 * widen * wider, width) for wider in (1, 2, 4)]
        stem = scaled(16 * min(widen, 2), width)
        self.conv1 = nn.Conv2d(image(inputs, 3)[0], stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(Block, blocks, stem, sizes[0], 1)
        self.layer2 = stage(Block, blocks, sizes[0], sizes[1], 2)
        self.layer3 = stage(Block, blocks, sizes[1], sizes[2], 2)
        self.fc = nn.Linear(sizes[2], classes)
        draw(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
