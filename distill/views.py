"""Finite lists of views: what each makes of a batch of inputs is known, so soft targets are exact.

A list has parameters of these names as it needs them:

- ``inputs``: images, uint8 (B, channels, H, W), shifted and mirrored already if that is asked for,
  or features, normalised float32 (B, D);
- ``view``, which of them is wanted, from 0 to ``count`` - 1;
- ``count``, a key of every list: how many there are.

All others are the keys of its yaml. It returns the inputs in that view, of the same shape and type.
An example's view follows from the example, the number and the keys alone: it is not random, and
does not look at the others of its batch. View 0 need not be the example itself.
"""

from torch import Tensor

__all__ = ["turns"]


def turns(inputs: Tensor, view: int) -> Tensor:
    """Square images by so many quarter turns, counterclockwise, of which there are four.

    Args:
        inputs: images, uint8 (B, channels, H, H).
        view: how many turns.

    Returns:
        As the inputs.

    Raises:
        ValueError: these are no square images.

    Example:
        >>> turns(torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8), 1).tolist()
        [[[[2, 4], [1, 3]]]]
    """
    if inputs.ndim != 4 or inputs.shape[2] != inputs.shape[3]:
        raise ValueError("it turns square images")
    return inputs.rot90(view, (2, 3))
