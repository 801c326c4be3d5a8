"""Pictures in files, of any format that Pillow reads, as arrays of pixels.

Letters: H and W a picture's size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from distill.system.store import told

Pixels = npt.NDArray[np.uint8]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of pictures, by their channels
GREY = ("1", "L", "LA", "La")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits for each pixel


def pixels(path: Path, channels: int | None = None, size: tuple[int, int] | None = None) -> Pixels:
    """The pixels (H, W, channels) of a picture; what is transparent in it is black.

    Args:
        path: of a file that holds one picture.
        channels: a key of `MODES`; None: 1 of a picture that is stored as grey, else 3.
        size: (H, W) that it is given: the part in its middle that has these proportions, made
            larger or smaller (bilinear). None: its own.

    Raises:
        ValueError: the file cannot be read, or holds another thing; in one line.
    """
    try:
        with Image.open(path) as picture:
            frames = getattr(picture, "n_frames", 1)
            if frames == 1 and picture.mode not in DEEP:
                return _array(picture, channels, size)
            mode = picture.mode
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: it is no picture that Pillow reads") from error
    except Exception as error:  # each format has its own
        damage = " ".join(f"{path}: it is damaged ({error})".split())
        raise ValueError(told(error) or damage) from error
    if frames > 1:
        raise ValueError(f"{path}: it holds {frames} pictures; wanted is one a file")
    raise ValueError(f"{path}: its pixels have more than 8 bits ({mode}); wanted is 8")


def several(
    folder: Path, names: Sequence[str], channels: int | None, size: tuple[int, int] | None
) -> list[Pixels]:
    """The `pixels` of each of some files below a folder."""
    return [pixels(folder / name, channels, size) for name in names]


def _array(picture: Image.Image, channels: int | None, size: tuple[int, int] | None) -> Pixels:
    if channels is None:
        channels = 1 if picture.mode in GREY else 3
    whole: Any = picture
    if channels < 4 and picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, "black")
        whole = Image.alpha_composite(black, picture.convert("RGBA"))
    whole = whole.convert(MODES[channels])
    if size is not None and size != (whole.height, whole.width):
        whole = ImageOps.fit(whole, size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(whole, np.uint8).reshape(whole.height, whole.width, channels)
