"""Data sets: their sources, their content, their validation split.

Letters: N examples, C classes, H and W an image's size.

A source is a function whose keyword-only parameters are the keys of its yaml. It returns the
training images and labels and the test images and labels as tensors on the CPU: images uint8
(N, H, W) or (N, channels, H, W), labels int64 (N,) from 0 to C - 1.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from distill import transfer
from distill.data.downloaded import fashion_mnist, mnist
from distill.data.embedded import mnist_5k
from distill.data.generated import synthetic

__all__ = ["fashion_mnist", "mnist", "mnist_5k", "synthetic"]

PARTS = ("training images", "training labels", "test images", "test labels")

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
        ValueError: a file's content, or what the source returns, is not what it should be.
    """
    tensors = source(**options)
    _check(tensors)
    images = [t if t.ndim == 4 else t.unsqueeze(1) for t in tensors[::2]]
    return Dataset(images[0], tensors[1], images[1], tensors[3])


def _check(tensors: Sequence[object]) -> None:
    """Raises ValueError: these are not images and labels that a student could be trained on."""
    if not isinstance(tensors, tuple) or len(tensors) != len(PARTS):
        raise ValueError(f"it must return {len(PARTS)} tensors: {', '.join(PARTS)}")
    for name, tensor in zip(PARTS, tensors, strict=True):
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
            kind = f"on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"its {name} are {kind}; a tensor on the CPU is wanted")
    images, labels, test_images, test_labels = (t for t in tensors if isinstance(t, Tensor))
    for name, given in (("training images", images), ("test images", test_images)):
        if given.dtype != torch.uint8 or given.ndim not in (3, 4) or not given.numel():
            raise ValueError(
                f"its {name} are {str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}; "
                "wanted is uint8 (N, H, W) or (N, channels, H, W), since data.jitter and "
                "teacher.jitter shift pixels"
            )
    if images.shape[1:] != test_images.shape[1:]:
        sizes = f"{tuple(images.shape[1:])} and {tuple(test_images.shape[1:])}"
        raise ValueError(f"its training and test images have different sizes, {sizes}")
    for part, pictures, own in (("training", images, labels), ("test", test_images, test_labels)):
        if own.dtype != torch.int64 or own.shape != pictures.shape[:1]:
            raise ValueError(
                f"its {part} labels are {str(own.dtype).removeprefix('torch.')} "
                f"{tuple(own.shape)}; wanted is int64 ({len(pictures)},), one an image"
            )
        if own.min() < 0:
            raise ValueError(f"its {part} labels hold {int(own.min())}; classes count from 0")
    last = max(int(labels.max()), int(test_labels.max()))
    if last >= len(labels):  # some class has no example; to count them could take any memory
        raise ValueError(f"its labels hold {last}, but there are {len(labels)} training examples")
    missing = (labels.bincount(minlength=last + 1) == 0).nonzero().flatten().tolist()
    if missing:
        raise ValueError(f"no training example is of class {missing[0]} of the classes 0 to {last}")
