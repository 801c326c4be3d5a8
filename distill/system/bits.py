"""A truth for each of N examples as text, one bit each, which says how many are true."""

from base64 import b64decode, b64encode

import numpy as np
from numpy.typing import NDArray


def packed(truths: NDArray[np.bool_]) -> str:
    """Truths (N,) as text: how many are true, of how many, and `numpy.packbits` in base64.

    Example:
        >>> packed(np.array([False, True, True]))
        '2/3:YA=='
    """
    code = b64encode(np.packbits(truths).tobytes()).decode()
    return f"{truths.sum()}/{len(truths)}:{code}"


def unpacked(text: str) -> NDArray[np.bool_]:
    """The truths (N,) of which `packed` made a text.

    Raises:
        ValueError: it is damaged.
    """
    head, _, code = text.partition(":")
    true, count = map(int, head.split("/"))
    coded = np.frombuffer(b64decode(code, validate=True), np.uint8)
    truths = np.unpackbits(coded).astype(bool)
    if not (0 <= 8 * len(coded) - count < 8 and truths.sum() == truths[:count].sum() == true):
        raise ValueError("it holds other numbers than it says")
    return truths[:count]
