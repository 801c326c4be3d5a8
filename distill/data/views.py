"""Inputs that lie whole on the device, and the views that an augmentation makes of images.

Letters: N examples, B of them in a batch, V views, j the jitter in pixels, H and W an image's size,
D features.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Numbers = float | Sequence[float]  # one for all channels or features, or one for each
# One view of a finite list: of ``inputs`` (B, ...), by that name, it makes others of their kind.
Change = Callable[..., Tensor]


def spread(numbers: Numbers, like: Tensor) -> Tensor | float:
    """One number as it is; several as a tensor that acts on the second axis of ``like``."""
    if isinstance(numbers, int | float):
        return numbers
    values = torch.tensor(numbers, dtype=torch.float64, device=like.device)
    return values.view(-1, *[1] * (like.ndim - 2))


def count(jitter: int, flip: bool) -> int:
    """V, the number of views of an image."""
    return (2 * jitter + 1) ** 2 * (2 if flip else 1)


def shares(jitter: int) -> list[float]:
    """How often each of the (2j + 1)^2 translations comes that round a shift drawn evenly.

    Along each axis the shift is uniform from -j to j and rounded, as torchvision's RandomAffine
    does, so that both ends come half as often as the others. They are numbered as in `Inputs`.

    Args:
        jitter: j, in pixels.

    Example:
        >>> shares(1)
        [0.0625, 0.125, 0.0625, 0.125, 0.25, 0.125, 0.0625, 0.125, 0.0625]
    """
    if not jitter:
        return [1.0]
    axis = [share / (2 * jitter) for share in (0.5, *[1.0] * (2 * jitter - 1), 0.5)]
    return [row * column for row in axis for column in axis]


class Inputs:
    """Inputs on a device, normalised when read, with the views that jitter and flip make.

    A view of an image is a translation by up to ``jitter`` pixels in each direction, (2j + 1)^2 of
    them; what comes in at the edge has value 0. With ``flip`` each also comes mirrored, left to
    right. The translations are numbered row by row, so the untranslated image is in their middle;
    the mirrored ones follow. Pixels are scaled to [0, 1], then shifted by ``mean`` and divided by
    ``std``. Features have one view, and are normalised once. Each of ``changes``, if there are any,
    then makes a view of each of these views: all those of the first come first, and so on.

    Args:
        raw: images, uint8 (N, channels, H, W), or features, floats (N, D).
        jitter: j, in pixels.
        flip: whether there are mirrored views.
        mean: of pixels from 0 to 1, or of features; one number, or one for each channel or feature.
        std: of the same.
        changes: a finite list of views (`distill.views`): of uint8 images (B, channels, H, W), or
            of normalised features (B, D).

    Example:
        >>> images = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
        >>> Inputs(images, jitter=4, flip=True, mean=0.5, std=0.25).views
        162
    """

    def __init__(
        self,
        raw: Tensor,
        *,
        jitter: int = 0,
        flip: bool = False,
        mean: Numbers,
        std: Numbers,
        changes: Sequence[Change] = (),
    ) -> None:
        self.raw = raw
        self.features = raw.is_floating_point()
        self.side = 2 * jitter + 1
        self.flip = flip
        self.changes = changes
        centre, width = spread(mean, raw), spread(std, raw)
        self.scale, self.shift = 1 / (255 * width), -centre / width
        if self.features:
            # In float64, in which a large mean leaves digits of what differs.
            self._rows = ((raw.double() - centre) / width).float()
            return
        if isinstance(self.scale, Tensor):
            self.scale = self.scale.float()
        if isinstance(self.shift, Tensor):
            self.shift = self.shift.float()
        size = raw.shape[-2:]
        padded = F.pad(raw, [jitter] * 4)
        self._shifted = padded.unfold(-2, size[0], 1).unfold(-2, size[1], 1)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def views(self) -> int:
        """V, the number of views of an image."""
        return count(self.side // 2, self.flip) * max(1, len(self.changes))

    @property
    def centre(self) -> int:
        """The number of the view that is the image itself, before any of the ``changes``."""
        return self.side**2 // 2

    def batch(self, index: Tensor, view: Tensor | int, dtype: torch.dtype) -> Tensor:
        """Views ``view`` of the inputs ``index`` (B,), normalised: (B, channels, H, W), (B, D)."""
        return self.normalised(self.pick(index, view), dtype)

    def normalised(self, picked: Tensor, dtype: torch.dtype) -> Tensor:
        """What `pick` returned, as models take it; of images floats from 0 to 255, too."""
        if self.features:
            return picked.to(dtype)
        return picked.to(dtype, copy=True).mul_(self.scale).add_(self.shift)

    def pick(self, index: Tensor, view: Tensor | int) -> Tensor:
        """Views ``view`` of the inputs ``index`` (B,): uint8 images, or normalised features."""
        if isinstance(view, int):
            view = torch.full_like(index, view)
        if not self.changes:
            return self._plain(index, view)
        plain = count(self.side // 2, self.flip)
        return self._changed(self._plain(index, view % plain), view // plain)

    def _changed(self, picked: Tensor, number: Tensor) -> Tensor:
        """The ``picked`` inputs, each as the change of its ``number`` (B,) makes it."""
        found = torch.empty_like(picked)
        for n in torch.unique(number).tolist():
            own = (number == n).nonzero().flatten()
            made = self.changes[n](inputs=picked[own])
            if made.dtype != picked.dtype or made.shape != picked[own].shape:
                raise ValueError(f"view {n} of a list of views has another shape or type")
            found[own] = made
        return found

    def _plain(self, index: Tensor, view: Tensor) -> Tensor:
        """The same of the views (B,) that jitter and flip make."""
        if self.features:
            return self._rows[index]
        place = view % self.side**2 if self.flip else view
        row, column = place // self.side, place % self.side
        pixels: Tensor = self._shifted[index, :, row, column]
        if self.flip:
            mirrored = (view >= self.side**2)[:, None, None, None]
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return pixels
