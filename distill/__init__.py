"""Sweeps for knowledge distillation: overrides in, a tidy summary CSV out."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

from distill.system import machine

# Large tensors on the CPU in huge pages: torch reads it at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
machine.prepare()

__version__ = "0.1.0"


def summary(path: str | Path) -> "pd.DataFrame":
    """The summary of a sweep: a row a run, whole numbers, numbers, text and truths as such.

    Args:
        path: a sweep's folder, whose results are read as they are now; or a summary.csv.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not a CSV.
    """
    frame: pd.DataFrame = import_module("distill.runs.results").read_summary(
        path
    )  # it needs pandas
    return frame
