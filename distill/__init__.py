"""Sweeps for knowledge distillation: overrides in, a tidy summary CSV out."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from distill import data, losses, models, optim, transfer
    from distill.cli.python import Result, load, run, sweep
    from distill.config.errors import ConfigError
    from distill.deploy.student import Student
    from distill.runs.wrong import wrong
    from distill.training.fit import RunError

from distill.system import machine

# Large tensors on the CPU in huge pages: torch reads it at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
machine.prepare()

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Result",
    "RunError",
    "Student",
    "__version__",
    "data",
    "load",
    "losses",
    "models",
    "optim",
    "run",
    "summary",
    "sweep",
    "transfer",
    "wrong",
]

# Where the names above lie; each is imported when it is first used.
_HOMES = {
    "ConfigError": "distill.config.errors",
    "Result": "distill.cli.python",
    "RunError": "distill.training.fit",
    "Student": "distill.deploy.student",
    "load": "distill.cli.python",
    "run": "distill.cli.python",
    "sweep": "distill.cli.python",
    "wrong": "distill.runs.wrong",
}
_PARTS = ("data", "losses", "models", "optim", "transfer")


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported now, since most of it needs torch."""
    if name in _PARTS:
        return import_module(f"distill.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def summary(path: str | Path) -> "pd.DataFrame":
    """The summary of a sweep, with one row for each run.

    Columns of whole numbers, numbers, text and truths have these types.

    Args:
        path: a sweep's folder, whose results are read as they are now; or a summary.csv.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not a CSV.
    """
    summaries = import_module("distill.runs.summaries")  # late: it needs pandas
    frame: pd.DataFrame = summaries.read_summary(path)
    return frame
