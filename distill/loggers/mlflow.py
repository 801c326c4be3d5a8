"""MLflow: a run for each run, in a database beside the runs or at a URI."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat

from distill.loggers.base import Logger, Row, RunInfo, flat, need, recall, remember
from distill.system.store import alone

if TYPE_CHECKING:
    from mlflow.entities import Metric

DATABASE = "mlflow.db"
# How a run ended, in the words of MLflow. One that halving stopped did what it was to do.
STATUS = {"complete": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}
SIZE = 100  # parameters and tags in a request; MLflow takes as many
MOST = 1000  # metrics in a request; MLflow takes as many


class MLflow(Logger):
    """Makes an MLflow run of each run, with its config, figures and status.

    Without a ``uri`` all runs of a sweep go into ``mlflow.db`` beside them, and nothing leaves the
    computer. A resumed run goes on in its MLflow run, and leaves out the epochs that it holds.
    """

    def __init__(self, *, uri: str | None, experiment: str | None, every: NonNegativeFloat) -> None:
        """Look for the package.

        Args:
            uri: of a tracking store or server, as MLflow has it; None for a database in the folder
                that holds the runs' folders.
            experiment: the name of the MLflow experiment; None for that of this folder.
            every: seconds after which epochs that wait are sent together; 0 sends each.

        Raises:
            ImportError: mlflow is not installed.
        """
        need("mlflow", "mlflow")
        self.uri, self.experiment, self.every = uri, experiment, every

    def start(self, run: RunInfo) -> None:
        """Make an MLflow run, or go on in that of an earlier try."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        with _quiet():
            from mlflow import MlflowClient

            folder = run.directory.parent
            uri = self.uri or f"sqlite:///{folder / DATABASE}"
            # Of several processes, one makes the tables of a database and the experiment.
            with alone(folder / f".{DATABASE}.lock", quiet=True):
                self.client = MlflowClient(uri)
                experiment = self._experiment(self.experiment or folder.name)
            self.id = self._found(run) or self._made(run, experiment)
        self.waiting: list[Metric] = []
        self.sent = time.monotonic()
        self.known = self._known()
        for row in run.rows:
            self._wait(row)

    def epoch(self, row: Row) -> None:
        """Send the figures, or let them wait for others."""
        self._wait(row)
        if time.monotonic() - self.sent >= self.every:
            self._send()

    def end(self, result: Mapping[str, Any]) -> None:
        """Send what waits, and the status."""
        self._send()
        for name in ("status", "reason"):
            if result[name] is not None:
                self.client.set_tag(self.id, f"distill.{name}", result[name])
        self.client.set_terminated(self.id, STATUS.get(result["status"], "FAILED"))

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self.client.create_experiment(name))

    def _found(self, run: RunInfo) -> str | None:
        """The MLflow run of an earlier try, running again; None if there is none."""
        from mlflow.exceptions import MlflowException

        name = recall(run, "mlflow")
        if name is None:
            return None
        try:
            self.client.update_run(name, status="RUNNING")
        except MlflowException:  # it was deleted, or lies in another store
            return None
        return name

    def _made(self, run: RunInfo, experiment: str) -> str:
        from mlflow.entities import Param

        tags = {"distill.directory": str(run.directory), "distill.seed": str(run.seed)}
        name: str = self.client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in flat(run.config)]
        for first in range(0, len(params), SIZE):
            self.client.log_batch(name, params=params[first : first + SIZE])
        remember(run, "mlflow", name)
        return name

    def _known(self) -> int:
        """The last epoch that the MLflow run holds."""
        keys = self.client.get_run(self.id).data.metrics
        return max(
            (m.step for key in [*keys][:1] for m in self.client.get_metric_history(self.id, key)),
            default=0,
        )

    def _wait(self, row: Row) -> None:
        from mlflow.entities import Metric

        epoch, now = int(row["epoch"]), int(time.time() * 1000)
        if epoch > self.known:
            self.waiting += [Metric(k, v, now, epoch) for k, v in row.items() if k != "epoch"]

    def _send(self) -> None:
        for first in range(0, len(self.waiting), MOST):
            self.client.log_batch(self.id, metrics=self.waiting[first : first + MOST])
        self.waiting, self.sent = [], time.monotonic()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log as it is: what makes the tables of a database configures it anew."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    loud = {name: logging.getLogger(name) for name in ("alembic", "mlflow")}
    before = {name: logger.level for name, logger in loud.items()}
    for logger in loud.values():
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, logger in loud.items():
            logger.setLevel(before[name])
