"""TensorBoard: event files in each run's directory."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import PositiveFloat

from distill.loggers.base import Logger, Row, RunInfo, flat, need


class TensorBoard(Logger):
    """Writes event files into the run's directory: ``tensorboard --logdir`` shows the sweep's.

    A run that is resumed purges what the files of earlier tries hold, and writes the epochs of its
    checkpoint anew, so that each epoch stands once.
    """

    def __init__(self, *, flush: PositiveFloat) -> None:
        """Look for the package.

        Args:
            flush: seconds after which what waits is written.

        Raises:
            ImportError: tensorboard is not installed.
        """
        need("tensorboard", "tensorboard")
        self.flush = flush

    def start(self, run: RunInfo) -> None:
        """Open a file, and write the config as text."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(run.directory, purge_step=1, flush_secs=self.flush)
        self.config: Mapping[str, Any] | None = run.config
        self._text("config", json.dumps(run.config, indent=1))
        for row in run.rows:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Write a scalar for each figure; before the first, the config as hyperparameters."""
        figures = {name: value for name, value in row.items() if name != "epoch"}
        if self.config is not None:
            self._begin(self.config, figures)
            self.config = None
        for name, value in figures.items():
            self.writer.add_scalar(name, value, int(row["epoch"]))

    def end(self, result: Mapping[str, Any]) -> None:
        """Write the status, and close the file."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        self._text("status", ": ".join(filter(None, (result["status"], result["reason"]))))
        done = result["status"] in ("complete", "stopped")
        status = api_pb2.STATUS_SUCCESS if done else api_pb2.STATUS_FAILURE
        data = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(status=status)
        )
        plugin = SummaryMetadata.PluginData(
            plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
        )
        about = SummaryMetadata(plugin_data=plugin)
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about)
        self.writer.file_writer.add_summary(Summary(value=[value]))
        self.writer.close()

    def _begin(self, config: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Write what the page of hyperparameters shows: the config, and which figures there are."""
        from torch.utils.tensorboard import summary

        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in flat(config)}
        # The third says that the run succeeded, which it has not yet.
        made: Any = summary.hparams
        for part in made(plain, dict(figures))[:2]:
            self.writer.file_writer.add_summary(part)

    def _text(self, name: str, text: str) -> None:
        self.writer.add_text(name, f"    {text}".replace("\n", "\n    "))
