"""What is claimed, what became of it, and the sweeps that say so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Estimate:
    """One figure with its 95 % interval over ``n`` seeds."""

    label: str
    n: int
    mean: float
    low: float
    high: float
    unit: str = "test errors"


@dataclass(frozen=True)
class Finding:
    """A claim and what became of it."""

    id: str
    claim: str
    source: str
    estimates: tuple[Estimate, ...]
    verdict: str
    test: str
    outcome: str
    sweep: str
    command: str
    version: str


@dataclass(frozen=True)
class Digit:
    """A training digit (H, W) and the teacher's logits (C,) for it."""

    label: int
    pixels: np.ndarray[Any, Any]
    logits: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep's directory, as read."""

    name: str
    folder: Path
    runs: pd.DataFrame
    commands: tuple[str, ...]
    curves: pd.DataFrame | None
    digits: tuple[Digit, ...]
