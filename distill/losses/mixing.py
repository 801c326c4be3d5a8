"""Soft and hard terms in one loss, and the values that their hyperparameters may have."""

from typing import Annotated

import torch
from pydantic import AfterValidator, Field, PositiveFloat
from pydantic_core import PydanticCustomError
from torch import Tensor

Weight = Annotated[float, Field(ge=0, le=1)]


def _within(temperature: float) -> float:
    """See that the products with T below stay in the range of float32."""
    if not 1e-6 <= temperature <= 1e30:
        raise PydanticCustomError("range", "Input should be from 1e-6 to 1e30")
    return temperature


Temperature = Annotated[PositiveFloat, AfterValidator(_within)]


def mixed(alpha: Tensor | float, soft: Tensor, hard: Tensor) -> Tensor:
    """``alpha * soft + (1 - alpha) * hard``, which a soft term of weight 0 does not spoil.

    Where it overflows, the largest number takes its place, so that its product with 0 is 0.
    """
    bounded = soft.nan_to_num(nan=torch.finfo(soft.dtype).max)
    return alpha * bounded + (1 - alpha) * hard
