"""What the report is made of: sweeps as read from their directories, and what became of claims.

Letters: C classes, H and W an image's size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

REPRODUCED, NOT, UNDECIDED = "reproduced", "not reproduced", "not decided"


@dataclass(frozen=True)
class Digit:
    """A training example and the teacher's logits (C,) for it; ``pixels`` (H, W) uint8."""

    label: int
    pixels: "np.ndarray[Any, Any]"
    logits: "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Sweep:
    """A sweep's directory.

    ``runs`` are the complete rows of its summary; ``curves`` the rows of every run's history, with
    a column ``run``, where there are any.
    """

    name: str
    folder: Path
    runs: pd.DataFrame
    commands: tuple[str, ...] = ()
    curves: pd.DataFrame | None = None
    digits: tuple[Digit, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` seeds with its 95 % interval."""

    label: str
    n: int
    mean: float
    low: float
    high: float
    unit: str = "test errors"


@dataclass(frozen=True)
class Finding:
    """A claim, the test that was written down for it beforehand, and what it gave on a sweep."""

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
    folder: Path = Path()
