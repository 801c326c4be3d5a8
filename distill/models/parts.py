"""What the families of networks share: shapes, widths, first weights, and what they are called.

Letters: B images, H and W an image's size.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import Field
from torch import nn

Shape = tuple[int, ...]
Multiplier = Annotated[float, Field(gt=0, le=1024)]
Model = TypeVar("Model", bound=Callable[..., nn.Module])


def known_as(name: Callable[..., str]) -> Callable[[Model], Model]:
    """Call a model by its options in the names of runs, in tables and in errors.

    Without it, a model is called by the name of its class or function, in lower case.

    Args:
        name: takes the model's options by their names; what it returns is safe in a file's name.

    Example:
        >>> @known_as(lambda depth, **_: f"net{depth}")
        ... class Net(nn.Module):
        ...     def __init__(self, inputs: Shape, classes: int, *, depth: int) -> None: ...
    """

    def decorate(model: Model) -> Model:
        model.known_as = name  # type: ignore[attr-defined]
        return model

    return decorate


def image(inputs: Shape, least: int) -> tuple[int, int, int]:
    """The channels, height and width of images of at least ``least`` pixels a side.

    Raises:
        ValueError: they are smaller, or ``inputs`` is no shape of images.

    Example:
        >>> image((3, 32, 32), 8)
        (3, 32, 32)
    """
    if len(inputs) != 3:
        raise ValueError(
            "wanted are images (channels, height, width); for rows of numbers take mlp"
        )
    channels, height, breadth = inputs
    if min(height, breadth) < least:
        raise ValueError(f"wanted are images of {least} x {least} pixels or more")
    return channels, height, breadth


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded, and at least one.

    Example:
        >>> scaled(16, 0.5), scaled(16, 0.01)
        (8, 1)
    """
    return max(1, round(channels * width))


def stage(
    block: Callable[[int, int, int], nn.Module],
    blocks: int,
    entering: int,
    leaving: int,
    stride: int,
) -> nn.Sequential:
    """Residual ``blocks``, of which the first changes the number of channels and the size."""
    first = block(entering, leaving, stride)
    return nn.Sequential(first, *(block(leaving, leaving, 1) for _ in range(blocks - 1)))


def draw(module: nn.Module) -> None:
    """Draw the weights of convolutions as He et al. 2015 (arXiv 1502.01852, equation 14) do.

    What else there is stays as torch has made it.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
