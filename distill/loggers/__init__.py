"""Loggers: what of each epoch goes to a tracker, beside the run's own ``history.csv``.

Those of `__all__` may be named by a ``_target_``; `Logger`, `Row` and `RunInfo` are for loggers of
one's own. A tracker's package is imported when a run starts, and only looked for before.
"""

from distill.loggers.base import Logger as Logger
from distill.loggers.base import Row as Row
from distill.loggers.base import RunInfo as RunInfo
from distill.loggers.mlflow import MLflow
from distill.loggers.tensorboard import TensorBoard
from distill.loggers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "WandB"]
