"""Arrays of images or features, in a file of NumPy's, safetensors' or torch's, or a folder of such.

Letters: N examples, C channels, H and W an image's size, D features.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distill.data.dataset import Dataset, joined
from distill.data.labels import Array, encoded
from distill.system.arrays import load

Layout = Literal["channels_first", "channels_last"]
PARTS = {"train": "training", "test": "test", "val": "validation", "valid": "validation"}
INPUTS, LABELS = ("x", "inputs", "images", "features", "data"), ("y", "labels", "targets")
NAMES = (
    "wanted are train_x, train_y, test_x and test_y, and perhaps val_x and val_y (x_train as well; "
    f"for x {', '.join(INPUTS[1:])}; for y {', '.join(LABELS[1:])})"
)
COLOURS = (1, 3)
KINDS = (".npz", ".safetensors", ".pt", ".pth")


def arrays(*, root: str, layout: Layout | None = None) -> Dataset:
    """Images or features and labels that lie in arrays of these names.

    Inputs are train_x and test_x, labels train_y and test_y; val_x and val_y, if they are there,
    are the data set's own validation split. Images are uint8, (N, H, W), (N, C, H, W) or
    (N, H, W, C); rows (N, D) are features. Labels are whole numbers or text, whose names are kept.

    Args:
        root: a file (.npz, .safetensors, .pt, .pth), or a folder of .npy files of these names.
        layout: of images with four axes. None: as the axis of 1 or 3 channels shows.

    Raises:
        OSError: the file cannot be read.
        ValueError: an array is missing, or is not what it should be.
    """
    path = Path(root)
    parts = _parts(_loaded(path))
    for part in ("training", "test"):
        if len(parts.get(part, {})) < 2:
            raise ValueError(f"it lacks the {part} inputs or labels; {NAMES}")
    if len(parts.get("validation", {"x": 0, "y": 0})) < 2:
        raise ValueError(f"it has validation inputs or labels, but not both; {NAMES}")
    labels, names = encoded({part: _array(both["y"]) for part, both in parts.items()})
    inputs = {part: _inputs(part, _array(both["x"]), layout) for part, both in parts.items()}
    return joined(inputs, labels, names)


def _role(name: str) -> tuple[str, str] | None:
    """The part that an array's name says, and whether it holds x or y; None if it says neither."""
    first, _, last = name.lower().partition("_")
    for part, kind in ((first, last), (last, first)):
        if part in PARTS and kind in INPUTS + LABELS:
            return PARTS[part], "x" if kind in INPUTS else "y"
    return None


def _parts(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The inputs "x" and labels "y" of each part that the names show."""
    names: dict[tuple[str, str], str] = {}
    for name in sorted(found):
        if (role := _role(name)) is None:
            continue
        if role in names:
            raise ValueError(f"it has both {names[role]} and {name}; one of them is wanted")
        names[role] = name
    if not names:
        there = ", ".join(sorted(found)) or "none"
        raise ValueError(f"its arrays are {there}; {NAMES}")
    parts: dict[str, dict[str, Any]] = {}
    for part in PARTS.values():
        both = {kind: found[name] for (own, kind), name in names.items() if own == part}
        if both:
            parts[part] = both
    return parts


def _loaded(path: Path) -> dict[str, Any]:
    """The arrays in a file or folder, by their names; None for those that `_role` does not know.

    Raises:
        OSError: it cannot be read.
        ValueError: it is of no kind that is read, or damaged.
    """
    if path.is_dir():
        return {file.stem: _file(file) for file in sorted(path.glob("[!.]*.npy"))}
    if path.suffix.lower() not in KINDS:
        kinds = ", ".join(KINDS)
        raise ValueError(f"it is no file of {kinds}, nor a folder of .npy files")
    found = load(path, lambda name: not name or _role(name) is not None)
    if "" in found:
        raise ValueError(f"it holds {type(found['']).__name__}, no arrays by their names; {NAMES}")
    return found


def _file(path: Path) -> Any:
    """The array in a file of a folder, if its name says what it is."""
    if _role(path.stem) is None:
        return None
    try:
        return load(path).get("")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _array(value: Any) -> Array:
    """An array of what a file held, in this machine's order of bytes."""
    if isinstance(value, Tensor):
        wide = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        return wide.detach().numpy()
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _inputs(part: str, array: Array, layout: Layout | None) -> Tensor:
    """Images, uint8 (N, H, W) or (N, C, H, W), or features, floats (N, D).

    Raises:
        ValueError: it is neither, or its channels may be one axis or another.
    """
    what = f"its {part} inputs are {array.dtype} {array.shape}"
    if array.dtype.kind not in "uifb":
        raise ValueError(f"{what}; wanted are numbers")
    if array.ndim == 2:
        if array.dtype.kind != "f" or array.dtype.itemsize < 4:
            array = array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
        return torch.from_numpy(np.ascontiguousarray(array))
    if array.ndim not in (3, 4):
        raise ValueError(f"{what}; wanted are images (N, H, W) and more, or features (N, D)")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "ui" or array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise ValueError(f"{what}; images are uint8, from 0 to 255; features are (N, D)")
        array = array.astype(np.uint8)
    if array.ndim == 4 and _last(what, array.shape, layout):
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))


def _last(what: str, shape: Iterable[int], layout: Layout | None) -> bool:
    """Whether the channels of images are their last axis."""
    _, second, _, last = shape
    if layout is not None:
        return layout == "channels_last"
    if (second in COLOURS) == (last in COLOURS):
        raise ValueError(
            f"{what}, whose channels may be the second axis or the last: set data.layout="
            "channels_first or data.layout=channels_last"
        )
    return last in COLOURS
