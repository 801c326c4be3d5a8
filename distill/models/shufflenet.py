"""ShuffleNetV2 for small images.

Letters: B images, H and W an image's size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.parts import Multiplier, Shape, image, scaled

BLOCKS = (3, 7, 3)  # after the first of each stage
HALVES = (58, 116, 232)  # half the channels of each stage


def shuffled(one: Tensor, other: Tensor) -> Tensor:
    """The channels of two tensors (B, channels, H, W) in turn.

    Example:
        >>> shuffled(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)).flatten()
        tensor([0., 1., 0., 1.])
    """
    return torch.stack([one, other], 2).flatten(1, 2)


class Basic(nn.Module):
    """Half of the channels pass, the others are convolved."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passing, x = x.chunk(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return shuffled(passing, F.relu(self.bn3(self.conv3(x))))


class Down(nn.Module):
    """All channels enter two branches; each halves the size and makes half of what leaves."""

    def __init__(self, entering: int, half: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, entering, 3, 2, padding=1, groups=entering, bias=False)
        self.bn1 = nn.BatchNorm2d(entering)
        self.conv2 = nn.Conv2d(entering, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(entering, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        x = F.relu(self.bn3(self.conv3(x)))
        x = self.bn4(self.conv4(x))
        return shuffled(one, F.relu(self.bn5(self.conv5(x))))


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164, table 5, 1x) for 32 x 32 images.

    Its first convolution is 1 x 1 and not strided, and nothing is pooled before the end, as in the
    literature on distillation (Tian et al. 2020, arXiv 1910.10699), whose names of parameters these
    are, too.

    Args:
        inputs: (channels, height, width) of an image, of at least 5 x 5 pixels.
        classes: how many.
        width: multiplies all numbers of channels; that before the linear layer, 1,024, above 1
            alone. The paper's 0.5x, 1.5x and 2x have other proportions.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(self, inputs: Shape, classes: int, *, width: Multiplier = 1.0) -> None:
        super().__init__()
        stem, last = scaled(24, width), scaled(1024, max(width, 1.0))
        halves = [scaled(n, width) for n in HALVES]
        self.conv1 = nn.Conv2d(image(inputs, 5)[0], stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Down(entering, half), *(Basic(half) for _ in range(blocks)))
            for entering, half, blocks in zip(
                [stem, *(2 * n for n in halves[:-1])], halves, BLOCKS, strict=True
            )
        )
        self.conv2 = nn.Conv2d(2 * halves[-1], last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(F.relu(self.bn2(self.conv2(x))), 1)
        logits: Tensor = self.linear(x.flatten(1))
        return logits
