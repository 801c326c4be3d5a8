"""Inputs in files: pictures, of any format that Pillow reads, and NumPy's arrays.

Letters: N images or rows, H and W an image's size, D features.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.system.arrays import load
from distill.system.pictures import MODES, pixels
from distill.system.store import told

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
ARRAYS = (".npy", ".npz")


def images(path: Path, shape: Shape, fit: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The names of the inputs in a file, and each as a tensor of ``shape``.

    Args:
        path: a picture, which is made grey or coloured as the channels want it (what is transparent
            in it is black), or an array.
        shape: (channels, H, W) of an image, or (D,) of features.
        fit: whether a picture of another size is made to fit, as `data=image_folder` does it.

    Raises:
        ValueError: it cannot be read, or does not hold inputs of that shape; in one line.
    """
    try:
        if path.suffix.lower() in ARRAYS:
            yield from _arrays(path, shape)
        else:
            yield str(path), _picture(path, shape, fit)
    except OSError as error:
        raise ValueError(told(error) or f"{path}: {error}") from error


def _picture(path: Path, shape: Shape, fit: bool) -> Tensor:
    if len(shape) == 1:
        raise ValueError(
            f"{path}: the student takes rows of {shape[0]} features; give .npy, (N, {shape[0]})"
        )
    channels, height, width = shape
    if channels not in MODES:
        raise ValueError(
            f"{path}: a picture has no {channels} channels; give .npy, (N, {channels}, {height}, "
            f"{width})"
        )
    found = pixels(path, channels, (height, width) if fit else None)
    if found.shape[:2] != (height, width):
        raise ValueError(
            f"{path}: it is {found.shape[1]} x {found.shape[0]} pixels; wanted is "
            f"{width} x {height}, width and height"
        )
    return torch.from_numpy(found.copy()).permute(2, 0, 1)


def _arrays(path: Path, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    try:
        found = load(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name, array in found.items():
        yield from _array(f"{path}:{name}" if name else str(path), array, shape)


def _array(name: str, array: Array, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Each image of an array (N, channels, H, W) or (N, H, W, channels), or row of one (N, D).

    (N, H, W) and (H, W) are images of one channel, (D,) is one row.
    """
    given, features = array.shape, len(shape) == 1
    if array.ndim == (1 if features else 2):
        array = array[None]
    if array.ndim == 3 and shape[0] == 1:
        array = array[:, None]
    if array.shape[1:] == (*shape[1:], shape[0]) != shape:
        array = np.moveaxis(array, -1, 1)
    if array.shape[1:] != shape or array.ndim != 1 + len(shape):
        raise ValueError(f"{name}: it is {given}; wanted is (N, {', '.join(map(str, shape))})")
    floats = features or np.issubdtype(array.dtype, np.floating)
    _check_values(name, array, features)
    for n, values in enumerate(array):
        # In this machine's order of bytes, which torch wants.
        kind = np.float64 if features else np.float32 if floats else np.uint8
        yield f"{name}[{n}]", torch.from_numpy(np.array(values, kind))


def _check_values(name: str, array: Array, features: bool) -> None:
    """Raises ValueError: an array's values are no pixels, or no features."""
    floats = np.issubdtype(array.dtype, np.floating)
    if features:
        if array.dtype.kind not in "uifb" or not np.isfinite(array).all():
            raise ValueError(f"{name}: it holds what is no finite number ({array.dtype})")
        return
    if array.dtype != np.uint8 and not floats:
        raise ValueError(
            f"{name}: it is of {array.dtype}; wanted is uint8, or floats from 0 to 255"
        )
    if floats and not (np.isfinite(array).all() and (array >= 0).all() and (array <= 255).all()):
        raise ValueError(f"{name}: it holds numbers that are not from 0 to 255, as pixels are")
