"""Weights & Biases: a run for each run, offline unless another mode is asked for."""

import os
from collections.abc import Mapping
from typing import Any, Literal
from uuid import uuid4

from distill.loggers.base import Logger, Row, RunInfo, need, recall, remember


class WandB(Logger):
    """Makes a W&B run of each run, with its config, figures and status.

    Offline, runs lie in the folder ``wandb`` beside those of the sweep, until ``wandb sync`` sends
    them. A resumed run keeps its W&B id. Online, W&B leaves out the epochs that it holds; offline,
    each try has a folder of its own, which ``wandb sync`` joins, and epochs that were trained again
    after a kill stand in both.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        group: str | None,
        mode: Literal["offline", "online"],
    ) -> None:
        """Look for the package.

        Args:
            project: the W&B project.
            entity: the W&B user or team; None for the one that is logged in.
            group: the W&B group; None for the name of the folder that holds the runs' folders.
            mode: ``offline`` writes files alone, ``online`` sends them too.

        Raises:
            ImportError: wandb is not installed.
        """
        need("wandb", "wandb")
        self.project, self.entity, self.group, self.mode = project, entity, group, mode

    def start(self, run: RunInfo) -> None:
        """Make a W&B run, or go on in that of an earlier try."""
        if self.mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        name = recall(run, "wandb") or uuid4().hex
        remember(run, "wandb", name)
        folder = run.directory.parent
        self.run = wandb.init(
            id=name,
            name=run.name,
            project=self.project,
            entity=self.entity,
            group=self.group or folder.name,
            dir=folder,
            config=dict(run.config),
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",  # several runs in one process
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        for row in run.rows:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Log the figures at the step of the epoch."""
        self.run.log(dict(row), step=int(row["epoch"]))

    def end(self, result: Mapping[str, Any]) -> None:
        """Write the status into the run's summary, and finish it."""
        self.run.summary.update({name: result[name] for name in ("status", "reason")})
        self.run.finish(exit_code=0 if result["status"] in ("complete", "stopped") else 1)
