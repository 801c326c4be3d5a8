"""Soft and hard terms in one loss, and the values that their hyperparameters may have."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, NonNegativeFloat, PlainValidator, PositiveFloat
from pydantic_core import PydanticCustomError
from torch import Tensor

Weight = Annotated[float, Field(ge=0, le=1)]
Share = Weight
Factor = NonNegativeFloat  # a weight that may be larger than 1


def _within(temperature: float) -> float:
    """See that the products with T below stay in the range of float32."""
    if not 1e-6 <= temperature <= 1e30:
        raise PydanticCustomError("range", "Input should be from 1e-6 to 1e30")
    return temperature


def _weighing(value: object) -> object:
    """See that classes can be weighed by what a config says."""
    numbers = value if isinstance(value, list) else []
    if numbers and all(type(n) in (int, float) and 0 < n < math.inf for n in numbers):
        return [float(n) for n in numbers]
    if value is None or value == "balanced":
        return value
    allowed = "balanced, null, or a list of a number above 0 for each class"
    raise PydanticCustomError("class_weights", f"Input should be {allowed}")


Temperature = Annotated[PositiveFloat, AfterValidator(_within)]
Smoothing = Annotated[
    Annotated[float, Field(ge=0, lt=1)] | None,
    AfterValidator(lambda share: share or None),  # 0 is none: so one student has one name
]
ClassWeights = Annotated[Sequence[float] | Literal["balanced"] | None, PlainValidator(_weighing)]


def weighed(weight: Tensor | float, term: Tensor) -> Tensor:
    """``weight * term``, which is 0 for a weight of 0.

    Where the term overflows, the largest number takes its place, so that its product with 0 is 0.
    The gradient is 0 then as far as those of the term's parts are finite.
    """
    return weight * term.nan_to_num(nan=torch.finfo(term.dtype).max)


def mixed(alpha: Tensor | float, soft: Tensor, hard: Tensor) -> Tensor:
    """``alpha * soft + (1 - alpha) * hard``, which a soft term of weight 0 does not spoil."""
    return weighed(alpha, soft) + (1 - alpha) * hard
