"""Images that lie whole on the device as uint8, and the views that an augmentation makes of them.

Letters: N examples, B of them in a batch, V views, j the jitter in pixels, H and W an image's size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Images:
    """Images on a device, normalised when read, with the (2j + 1)^2 views that the jitter makes.

    A view is a translation by up to ``jitter`` pixels in each direction; what comes in at the edge
    has value 0. The views are numbered row by row, so the untranslated image is the middle one.
    Pixels are scaled to [0, 1], then shifted by ``mean`` and divided by ``std``.
    """

    def __init__(self, images: Tensor, *, jitter: int, mean: float, std: float) -> None:
        self.raw = images
        self.side = 2 * jitter + 1
        self.scale, self.shift = 1 / (255 * std), -mean / std
        size = images.shape[-2:]
        padded = F.pad(images, [jitter] * 4)
        self._views = padded.unfold(-2, size[0], 1).unfold(-2, size[1], 1)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def views(self) -> int:
        """V, the number of views of an image."""
        return self.side**2

    @property
    def centre(self) -> int:
        """The number of the untranslated view."""
        return self.views // 2

    def batch(self, index: Tensor, view: Tensor | int, dtype: torch.dtype) -> Tensor:
        """Views ``view`` of the images ``index`` (B,): normalised, (B, channels, H, W)."""
        if isinstance(view, int):
            view = torch.full_like(index, view)
        row, column = view // self.side, view % self.side
        pixels = self._views[index, :, row, column]
        return pixels.to(dtype).mul_(self.scale).add_(self.shift)
