"""VGG for small images."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.parts import Multiplier, Shape, draw, image, known_as, scaled

# Convolutions of each block, by depth: with the linear layer, and without two that the original
# has beside it; 8 is of the literature on distillation.
BLOCKS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
LARGE = 64  # pixels a side, from which on the fourth block is pooled, too


@known_as(lambda depth, **_: f"vgg{depth}")
class VGG(nn.Module):
    """VGG (Simonyan and Zisserman 2015, arXiv 1409.1556, table 1) with BatchNorm, for small images.

    Five blocks of 64 to 512 channels, then the mean over pixels and one linear layer, as in the
    literature on distillation (Tian et al. 2020, arXiv 1910.10699), whose names of parameters these
    are, too. The first three blocks are pooled.

    Args:
        inputs: (channels, height, width) of an image, of at least 8 x 8 pixels.
        classes: how many.
        depth: the number of layers that the original of this name has.
        width: multiplies all numbers of channels.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(
        self,
        inputs: Shape,
        classes: int,
        *,
        depth: Literal[8, 11, 13, 16, 19],
        width: Multiplier = 1.0,
    ) -> None:
        super().__init__()
        channels, *size = image(inputs, 8)
        self.pools = 4 if min(size) >= LARGE else 3
        sizes = [channels, *(scaled(n, width) for n in (64, 128, 256, 512, 512))]
        self.blocks = [f"block{n}" for n in range(len(BLOCKS[depth]))]
        for n, convolutions in enumerate(BLOCKS[depth]):
            self.add_module(self.blocks[n], _block(convolutions, sizes[n], sizes[n + 1]))
        self.classifier = nn.Linear(sizes[-1], classes)
        draw(self)

    def forward(self, x: Tensor) -> Tensor:
        for n, name in enumerate(self.blocks):
            x = self.get_submodule(name)(x)
            if n < self.pools:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _block(convolutions: int, entering: int, leaving: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in [entering, *[leaving] * (convolutions - 1)]:
        layers += [nn.Conv2d(channels, leaving, 3, padding=1), nn.BatchNorm2d(leaving), nn.ReLU()]
    return nn.Sequential(*layers)
