"""A tiny data set that needs no file: noisy bars, one orientation and place a class."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

Examples = Annotated[int, Field(gt=0, le=100_000)]
Classes = Annotated[int, Field(ge=2, le=16)]
Side = Annotated[int, Field(ge=8, le=64)]


def synthetic(
    *, examples: Examples, classes: Classes, size: Side
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``examples`` training images, half as many test images, of ``size`` x ``size`` pixels.

    Even classes are rows, odd ones columns, of brightness 160 under noise of up to 127.
    """
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % classes
        images = torch.randint(0, 128, (count, size, size), generator=generator)
        for label in range(classes):
            place = 1 + (label // 2) * (size - 2) // ((classes + 1) // 2)
            bars = images[labels == label]
            (bars if label % 2 else bars.transpose(1, 2))[:, :, place : place + 1] += 128
            images[labels == label] = bars
        return images.clamp_(max=255).to(torch.uint8), labels

    return (*part(examples), *part(max(classes, examples // 2)))
