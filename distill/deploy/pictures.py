"""Images in files: pictures, of any format that Pillow reads, and NumPy's arrays of images.

Letters: N images, H and W an image's size.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from distill.system.store import told

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
ARRAYS = (".npy", ".npz")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of pictures, by their channels
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits for each pixel


def images(path: Path, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """The names of the images in a file, and each as a tensor of ``shape`` (channels, H, W).

    A picture is made grey or coloured as the channels want it; what is transparent in it is black.

    Raises:
        ValueError: it cannot be read, or does not hold images of that size; in one line.
    """
    try:
        if path.suffix in ARRAYS:
            yield from _arrays(path, shape)
        else:
            yield str(path), _picture(path, shape)
    except OSError as error:
        reason = "it is no picture that Pillow reads"
        known = isinstance(error, UnidentifiedImageError)
        raise ValueError(
            f"{path}: {reason}" if known else told(error) or f"{path}: {error}"
        ) from error
    except (BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: it is damaged ({error})") from error


def _picture(path: Path, shape: Shape) -> Tensor:
    channels, height, width = shape
    if channels not in MODES:
        raise ValueError(
            f"{path}: a picture has no {channels} channels; give .npy, (N, {channels}, {height}, "
            f"{width})"
        )
    with Image.open(path) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise ValueError(f"{path}: it holds {frames} pictures; wanted is one a file, or .npy")
        if picture.mode in DEEP:
            raise ValueError(
                f"{path}: its pixels have more than 8 bits ({picture.mode}); wanted is 8"
            )
        if picture.size != (width, height):
            raise ValueError(
                f"{path}: it is {picture.width} x {picture.height} pixels; wanted is "
                f"{width} x {height}, width and height"
            )
        whole: Image.Image = picture
        if channels < 4 and picture.has_transparency_data:
            black = Image.new("RGBA", picture.size, "black")
            whole = Image.alpha_composite(black, picture.convert("RGBA"))
        pixels = np.array(whole.convert(MODES[channels]))
    return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1)


def _arrays(path: Path, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    with path.open("rb") as file:  # which NumPy would leave open where it is damaged
        for name, array in _loaded(path, file):
            yield from _array(name, array, shape)


def _loaded(path: Path, file: BinaryIO) -> list[tuple[str, Array]]:
    """The arrays in a file, and their names."""
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return [(str(path), loaded)]
        return [(f"{path}:{key}", loaded[key]) for key in loaded.files]
    except ValueError as error:
        raise ValueError(f"{path}: it holds no plain array of numbers") from error


def _array(name: str, array: Array, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Each image of an array (N, channels, H, W); (N, H, W) and (H, W) are of one channel."""
    channels, height, width = shape
    given = array.shape
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and channels == 1:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1:] != shape:
        raise ValueError(f"{name}: it is {given}; wanted is (N, {channels}, {height}, {width})")
    floats = np.issubdtype(array.dtype, np.floating)
    if array.dtype != np.uint8 and not floats:
        raise ValueError(
            f"{name}: it is of {array.dtype}; wanted is uint8, or floats from 0 to 255"
        )
    if floats and not (np.isfinite(array).all() and (array >= 0).all() and (array <= 255).all()):
        raise ValueError(f"{name}: it holds numbers that are not from 0 to 255, as pixels are")
    for n, pixels in enumerate(array):
        # In this machine's order of bytes, which torch wants.
        yield f"{name}[{n}]", torch.from_numpy(np.array(pixels, np.float32 if floats else np.uint8))
