"""Data sets: their sources, their content, their validation split.

Letters: N examples, C classes, H and W an image's size.

A source is a function whose keyword-only parameters are the keys of its yaml. It returns the
training images and labels and the test images and labels as tensors on the CPU: images uint8
(N, H, W) or (N, channels, H, W), labels int64 (N,) from 0 to C - 1.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from distill import transfer
from distill.data.downloaded import fashion_mnist, mnist
from distill.data.embedded import mnist_5k
from distill.data.generated import synthetic

__all__ = ["fashion_mnist", "mnist", "mnist_5k", "synthetic"]

Source = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Dataset:
    """Training and test images (uint8, (N, channels, H, W)) and labels (int64, (N,))."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, H, W) of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property
    def classes(self) -> int:
        """C, the number of classes."""
        return int(self.train_labels.max()) + 1

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content."""
        sha = hashlib.sha256()
        for tensor in vars(self).copy().values():
            if isinstance(tensor, Tensor):
                sha.update(repr((tensor.dtype, tensor.shape)).encode())
                sha.update(tensor.numpy().tobytes())
        return sha.hexdigest()

    def validation(self, share: float, generator: Generator) -> Tensor:
        """A mask (N,) of ``share`` of each training class, to select and tune on."""
        if share == 0:
            return torch.zeros_like(self.train_labels, dtype=torch.bool)
        return transfer.fraction(self.train_labels, generator, fraction=share)


def load(source: Source, **options: object) -> Dataset:
    """The data set of ``source``.

    Raises:
        OSError: a file is missing or cannot be read or downloaded.
        ValueError: a file's content is not what it should be.
    """
    tensors = source(**options)
    images = [t if t.ndim == 4 else t.unsqueeze(1) for t in tensors[::2]]
    return Dataset(images[0], tensors[1], images[1], tensors[3])
