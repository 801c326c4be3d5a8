"""Augmentations that are no finite list of views: each batch is changed anew, at random.

An augmentation has parameters of these names as it needs them, for a batch of B examples:

- ``inputs``: images, uint8 (B, channels, H, W), shifted and mirrored already if that is asked for,
  or features, normalised float32 (B, D);
- ``labels`` (B,), whole numbers from 0 to C - 1;
- ``classes``, C;
- ``generator``, on the device of the inputs, from which all that is random comes (or from torch's
  own, which the trainer seeds, too).

All others are the keys of its yaml. It returns the inputs, as uint8 or as float32 from 0 to 255; or
these and labels: (B,), or where they are mixed, shares of the classes, float32 (B, C). The teacher
sees what the students see, so its logits are made in each batch, once for all students of a stack.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor

__all__ = ["cutout", "mixup", "randaugment"]


def cutout(inputs: Tensor, generator: Generator, *, size: Annotated[int, Field(gt=0)]) -> Tensor:
    """A black square of ``size`` pixels at a random place of each image, cut at the edges.

    DeVries and Taylor (2017), "Improved Regularization of Convolutional Neural Networks with
    Cutout", arXiv 1708.04552.

    Args:
        inputs: images, uint8 (B, channels, H, W).
        generator: of the places of the squares' centres, which are uniform over the image.
        size: of a side, in pixels.

    Returns:
        As the inputs.

    Example:
        >>> image = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
        >>> int((cutout(image, torch.Generator().manual_seed(0), size=16) > 0).sum()) < 64
        True
    """
    if inputs.ndim != 4:
        raise ValueError("it cuts squares out of images")
    hidden = torch.ones(len(inputs), 1, *inputs.shape[2:], dtype=torch.bool, device=inputs.device)
    for axis in (2, 3):
        side = inputs.shape[axis]
        centre = torch.randint(side, (len(inputs), 1), generator=generator, device=inputs.device)
        place = torch.arange(side, device=inputs.device)
        inside = (place >= centre - size // 2) & (place < centre - size // 2 + size)
        hidden &= inside.view(len(inputs), 1, *((side, 1) if axis == 2 else (1, side)))
    return inputs.masked_fill(hidden, 0)


def mixup(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    generator: Generator,
    *,
    concentration: PositiveFloat,
) -> tuple[Tensor, Tensor]:
    """Each example mixed with another of the batch, and their labels by the same share.

    The share of the first is drawn from Beta(a, a), one a batch. Zhang et al. (2018), "mixup:
    Beyond Empirical Risk Minimization", arXiv 1710.09412.

    Args:
        inputs: images, uint8 (B, channels, H, W), or features, float32 (B, D).
        labels: (B,), whole numbers from 0 to C - 1.
        classes: C.
        generator: of the share and the partners.
        concentration: a, that paper's alpha.

    Returns:
        Inputs, float32, and labels, float32 (B, C), that sum to 1.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> mixed, shares = mixup(x, y, 2, torch.Generator().manual_seed(0), concentration=1.0)
        >>> shares.sum(1)
        tensor([1., 1.])
    """
    # torch draws from Beta by its own generator alone.
    seed = int(torch.randint(2**31, (), generator=generator, device=inputs.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        share = float(torch.distributions.Beta(concentration, concentration).sample())
    other = torch.randperm(len(inputs), generator=generator, device=inputs.device)
    shares = F.one_hot(labels, classes).float()
    own = inputs.float()
    return share * own + (1 - share) * own[other], share * shares + (1 - share) * shares[other]


def randaugment(
    inputs: Tensor,
    *,
    operations: Annotated[int, Field(gt=0, le=14)] = 2,
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9,
) -> Tensor:
    """Some random operations on each image: rotations, shears, contrasts and others.

    Cubuk et al. (2020), "RandAugment: Practical Automated Data Augmentation with a Reduced Search
    Space", arXiv 1909.13719, as torchvision has it. Its randomness is torch's own.

    Args:
        inputs: images of 1 or 3 channels, uint8 (B, channels, H, W).
        operations: how many, one after another; that paper's N.
        magnitude: how strong, of 31 steps; that paper's M.

    Returns:
        As the inputs.
    """
    from torchvision.transforms import v2  # late: other augmentations do without it

    if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        raise ValueError("it changes images of 1 or 3 channels")
    change = v2.RandAugment(num_ops=operations, magnitude=magnitude)
    return torch.stack([change(image) for image in inputs])
