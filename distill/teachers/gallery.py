"""Some training examples of each class, with what the teacher says of them, as a file to look at.

Letters: N examples, C classes.
"""

import base64
from typing import Any

from torch import Tensor


def gallery(images: Tensor, labels: Tensor, logits: Tensor) -> list[dict[str, Any]]:
    """Two examples of each class that the teacher gets right: of median doubt, and of most.

    ``images`` (N, channels, H, W) uint8, ``labels`` (N,), the teacher's ``logits`` (N, C). Doubt is
    the probability of the runner-up. Each has the ``index`` of the example, its ``label``, the
    ``height`` and ``width``, the ``pixels`` (base64, row by row; the mean of its channels), and
    ``logits``.
    """
    top = logits.softmax(-1).topk(2).values
    right = logits.argmax(-1) == labels
    chosen: list[int] = []
    for label in range(logits.shape[-1]):
        own = (right & (labels == label)).nonzero().flatten()
        ranked = own[top[own, 1].argsort(stable=True)].tolist()
        chosen += dict.fromkeys([ranked[len(ranked) // 2], ranked[-1]] if ranked else [])
    return [
        _described(i, images[i].float().mean(0).round().byte(), int(labels[i]), logits[i])
        for i in chosen
    ]


def _described(index: int, pixels: Tensor, label: int, logits: Tensor) -> dict[str, Any]:
    return {
        "index": index,
        "label": label,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "pixels": base64.b64encode(pixels.numpy().tobytes()).decode(),
        "logits": [round(value, 4) for value in logits.tolist()],
    }
