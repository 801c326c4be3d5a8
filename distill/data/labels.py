"""Labels of any kind as classes from 0 to C - 1, and the names of those.

Letters: N examples, C classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def encoded(parts: Mapping[str, Array]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The classes of some labels, and the names of the classes.

    The classes are the labels that "training" holds, in their order: numbers by their size, text by
    its letters. Where those are 0 to C - 1 already, they need no names and there are none.

    Args:
        parts: labels (N,) or (N, 1) of each part, "training" among them: whole numbers, truths or
            text.

    Returns:
        The classes, int64 (N,), of each part; and their C names.

    Raises:
        ValueError: they are no labels, or a part has one that no training example has.

    Example:
        >>> encoded({"training": np.array(["cat", "ant", "cat"])})
        ({'training': tensor([1, 0, 1])}, ('ant', 'cat'))
    """
    flat = {part: _flat(part, labels) for part, labels in parts.items()}
    if len({labels.dtype.kind for labels in flat.values()}) > 1:
        kinds = (f"{part} {_example(labels)!r}" for part, labels in flat.items())
        raise ValueError(f"some of its labels are numbers, and others text: {', '.join(kinds)}")
    known = np.unique(flat["training"])
    found = {}
    for part, labels in flat.items():
        place = np.searchsorted(known, labels).clip(max=len(known) - 1)
        if (other := known[place] != labels).any():
            raise ValueError(
                f"its {part} labels hold {_example(labels[other])!r}, of which there is no "
                "training example"
            )
        found[part] = torch.from_numpy(place.astype(np.int64))
    plain = known.dtype.kind == "i" and np.array_equal(known, np.arange(len(known)))
    return found, () if plain else tuple(map(str, known))


def _example(labels: Array) -> object:
    return labels[0].item()


def _flat(part: str, labels: Array) -> Array:
    """Labels (N,) of int64 or text.

    Raises:
        ValueError: they are of another kind or shape.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"its {part} labels are {labels.shape}; wanted is (N,), one an example (of one-hot "
            "ones, their argmax)"
        )
    kind = labels.dtype.kind
    if kind == "S":
        return np.char.decode(labels, "utf-8")
    if kind == "b" or (kind in "OT" and all(isinstance(label, str) for label in labels)):
        return labels.astype(str)
    if kind == "f" and not (whole := np.isfinite(labels) & (labels == np.round(labels))).all():
        raise ValueError(
            f"its {part} labels hold {_example(labels[~whole])}; a label is a class, so a whole "
            "number or text"
        )
    if kind not in "uifU":
        raise ValueError(f"its {part} labels are of {labels.dtype}; wanted are numbers or text")
    return labels if kind == "U" else labels.astype(np.int64)
