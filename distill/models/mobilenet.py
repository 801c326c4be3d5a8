"""MobileNetV2 for small images."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.parts import Multiplier, Shape, draw, image, scaled

EXPANSION = 6
# Of each stage: by what its blocks expand, its channels, blocks and first stride.
STAGES = (
    (1, 16, 1, 1),
    (EXPANSION, 24, 2, 1),
    (EXPANSION, 32, 3, 2),
    (EXPANSION, 64, 4, 2),
    (EXPANSION, 96, 3, 1),
    (EXPANSION, 160, 3, 2),
    (EXPANSION, 320, 1, 1),
)


class Inverted(nn.Module):
    """An inverted residual: expanded, convolved a channel at a time, and projected back."""

    def __init__(self, entering: int, leaving: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * entering
        self.added = stride == 1 and entering == leaving
        self.conv = nn.Sequential(
            *_rectified(nn.Conv2d(entering, wide, 1, bias=False)),
            *_rectified(nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False)),
            nn.Conv2d(wide, leaving, 1, bias=False),
            nn.BatchNorm2d(leaving),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.added else y


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2) for 32 x 32 images.

    The second stage is not strided, and units are rectified without a bound, as in the literature
    on distillation (Tian et al. 2020, arXiv 1910.10699; there ``width`` is 0.5), whose names of
    parameters these are, too.

    Args:
        inputs: (channels, height, width) of an image, of at least 9 x 9 pixels.
        classes: how many.
        width: multiplies all numbers of channels; that before the linear layer, 1,280, above 1
            alone.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(self, inputs: Shape, classes: int, *, width: Multiplier = 1.0) -> None:
        super().__init__()
        entering, last = scaled(32, width), scaled(1280, max(width, 1.0))
        stem = nn.Conv2d(image(inputs, 9)[0], entering, 3, 2, padding=1, bias=False)
        self.conv1 = nn.Sequential(*_rectified(stem))
        self.blocks = nn.ModuleList()
        for expansion, channels, count, stride in STAGES:
            leaving = scaled(channels, width)
            first = Inverted(entering, leaving, stride, expansion)
            others = (Inverted(leaving, leaving, 1, expansion) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *others))
            entering = leaving
        self.conv2 = nn.Sequential(*_rectified(nn.Conv2d(entering, last, 1, bias=False)))
        self.classifier = nn.Sequential(nn.Linear(last, classes))
        draw(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        x = F.adaptive_avg_pool2d(self.conv2(x), 1)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def _rectified(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
